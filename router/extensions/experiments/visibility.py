"""What a caller may know of: adapters, experiments, and the details of what was done to them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from router.extensions.experiments.model import BASE, Experiment, Mode, Spec
from router.types import EVERYTHING, Visible


@dataclass(frozen=True, slots=True)
class Visibility:
    """What a caller may know of, adapters and experiments."""

    adapters: Visible = EVERYTHING
    experiments: Visible = EVERYTHING

    @property
    def everything(self) -> bool:
        """Whether nothing is hidden."""
        return self.adapters.everything and self.experiments.everything

    def sees(self, experiment: Experiment) -> bool:
        """Whether it is there for the caller."""
        return all(self.sees_plan(experiment.name, spec) for spec in plans_of(experiment))

    def sees_plan(self, name: str, spec: Spec) -> bool:
        """Whether an experiment of that name and plan is."""
        if self.everything:
            return True
        seen = name in self.experiments and all(one in self.adapters for one in adapters_of(spec))
        return seen and not self.too_wide(spec)

    def too_wide(self, spec: Spec) -> str:
        """Why a plan is about more than the caller may know of, whatever its adapters; empty if it is not."""
        if spec.mode is Mode.HOLDOUT and not self.everything:
            return "a holdout is about all experiments and adapters, and this client may not know of all"
        return ""

    def detail(self, detail: Mapping[str, object]) -> Mapping[str, object]:
        """The detail of an audit entry, empty where it names an adapter that the caller may not know of:
        plans are edited, so an old one may name what the present one does not."""
        if self.adapters.everything or all(name in self.adapters for name in _named(detail)):
            return detail
        return {}


def plans_of(experiment: Experiment) -> Iterator[Spec]:
    """The present plan, and those of all phases."""
    yield experiment.spec
    yield from (phase.spec for phase in experiment.phases)


def adapters_of(spec: Spec) -> Iterator[str]:
    """Names of the adapters that a plan is about."""
    if spec.route not in ("", BASE):
        yield spec.route
    yield from (arm.adapter.name for arm in spec.arms if arm.adapter is not None)


def _named(value: object, key: str = "") -> Iterator[str]:
    """Names of adapters in the detail of an audit entry, as `Manager.update` makes it."""
    if isinstance(value, Mapping):
        if key == "adapter":
            yield str(value.get("name", ""))
        for inner, found in value.items():
            yield from _named(found, key if key == "route" else str(inner))
    elif isinstance(value, list | tuple):
        for found in value:
            yield from _named(found, key)
    elif key == "route" and value not in ("", BASE):
        yield str(value)
