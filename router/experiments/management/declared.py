"""What experiments say of metrics, so that a value of the wrong kind is refused when it comes in."""

from __future__ import annotations

from collections.abc import Iterable

from router.experiments.kind import Kind
from router.experiments.model import Experiment, Spec


class Declared:
    """Metrics that are proportions, by the plans of the last phases."""

    def __init__(self, experiments: Iterable[Experiment] = ()) -> None:
        self._by_experiment: dict[str, frozenset[str]] = {}
        self._anywhere: dict[str, str] = {}
        for experiment in experiments:
            if experiment.phase is not None:
                names = frozenset(_proportions(experiment.phase.spec))
                self._by_experiment[experiment.name] = names
                self._anywhere.update(dict.fromkeys(names, experiment.resource))

    def problem(self, metric: str, value: float, experiment: str = "") -> str:
        """Why an outcome cannot have this value; empty if it can.

        Of a response it is not known here in which experiment it was: any that has the metric counts.
        """
        if value in (0.0, 1.0):
            return ""
        if experiment:
            where = f"experiments/{experiment}"
            wrong = metric in self._by_experiment.get(experiment, ())
        else:
            where = self._anywhere.get(metric, "")
            wrong = where != ""
        return f"must be 0 or 1, since {metric!r} is a proportion in {where}, got {value:g}" if wrong else ""


def _proportions(spec: Spec) -> Iterable[str]:
    return (m.name for m in (spec.primary, *spec.guardrails) if m.kind is Kind.PROPORTION)
