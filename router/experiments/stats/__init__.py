"""Statistics that stay valid however often one looks, from sums that are kept up to date."""

from router.experiments.stats.compare import Comparison, Method, Span, compare
from router.experiments.stats.holm import holm
from router.experiments.stats.length import LengthAdjusted, length_adjusted
from router.experiments.stats.margin import Guarded, Guardrail, State, guard
from router.experiments.stats.maturity import Maturity, maturity
from router.experiments.stats.metric import Kind, Metric
from router.experiments.stats.missing import Missing, missing_outcomes
from router.experiments.stats.moments import Moments
from router.experiments.stats.paired import Paired, paired
from router.experiments.stats.plan import Plan
from router.experiments.stats.planning import fixed_size
from router.experiments.stats.sample_ratio import SampleRatio, sample_ratio

__all__ = [
    "Comparison",
    "Guarded",
    "Guardrail",
    "Kind",
    "LengthAdjusted",
    "Maturity",
    "Method",
    "Metric",
    "Missing",
    "Moments",
    "Paired",
    "Plan",
    "SampleRatio",
    "Span",
    "State",
    "compare",
    "fixed_size",
    "guard",
    "holm",
    "length_adjusted",
    "maturity",
    "missing_outcomes",
    "paired",
    "sample_ratio",
]
