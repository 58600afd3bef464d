"""Statistics that stay valid however often one looks, from sums that are kept up to date."""

from router.experiments.stats.beside import (
    Guarded,
    Guardrail,
    LengthAdjusted,
    Paired,
    Segmented,
    State,
    corrected,
    guard,
    length_adjusted,
    paired,
    segmented,
)
from router.experiments.stats.checks import (
    Maturity,
    Missing,
    SampleRatio,
    maturity,
    missing_outcomes,
    sample_ratio,
)
from router.experiments.stats.compare import Arms, Comparison, Method, Plan, Span, Waiting, compare, holm
from router.experiments.stats.moments import Kind, Metric, Moments
from router.experiments.stats.planning import Size, fixed_size, size_for, smallest_effect
from router.experiments.stats.sequences import Line

__all__ = [
    "Arms",
    "Comparison",
    "Guarded",
    "Guardrail",
    "Kind",
    "LengthAdjusted",
    "Line",
    "Maturity",
    "Method",
    "Metric",
    "Missing",
    "Moments",
    "Paired",
    "Plan",
    "SampleRatio",
    "Segmented",
    "Size",
    "Span",
    "State",
    "Waiting",
    "compare",
    "corrected",
    "fixed_size",
    "guard",
    "holm",
    "length_adjusted",
    "maturity",
    "missing_outcomes",
    "paired",
    "sample_ratio",
    "segmented",
    "size_for",
    "smallest_effect",
]
