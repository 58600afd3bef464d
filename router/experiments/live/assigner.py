"""Which arm of which experiment a request has: from a snapshot, without a database and without waiting."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from router.experiments.assignment import Assigned, NotAssigned, Reason, request_id_like, unit_hash
from router.experiments.live.snapshot import BASE, Running, Snapshot, snapshot_of
from router.experiments.live.warned import Warned
from router.experiments.model import ArmSpec
from router.types import Decision, Request


@dataclass(frozen=True, slots=True)
class Assignment:
    """The arm of a request. `unit` is the unit's hash, `propensity` how likely an enrolled unit got it."""

    running: Running
    arm: ArmSpec
    propensity: float
    unit: str


@dataclass(frozen=True, slots=True)
class Outside:
    """A request that an experiment is about, but that takes no part, and why."""

    experiment: str
    reason: Reason


class Assigner:
    """Order of decisions: eligibility, holdout, namespace, enrolment, variant.

    A request that names a version takes no part: it gets that version. One that names an adapter takes part
    in experiments on it, since the default version is what it asked for.
    """

    def __init__(self) -> None:
        self.snapshot = Snapshot()
        self._weights: dict[tuple[str, int], dict[float, Mapping[str, float]]] = {}
        self._warned = Warned()
        self._looked: set[tuple[str, int]] = set()  # phases in which a unit was found that is none

    def use(self, running: Iterable[Running]) -> None:
        """From now on these; weights that were set for a phase that still runs stay."""
        found = list(running)
        phases = {(one.name, one.phase) for one in found}
        self._weights = {key: epochs for key, epochs in self._weights.items() if key in phases}
        self._looked &= phases
        self._warned.use(found)
        self.snapshot = snapshot_of(map(self._weighted, found))

    def reweight(self, name: str, phase: int, start: float, weights: Mapping[str, float]) -> None:
        """Divide the units of a running phase by other weights from `start` (unix seconds) on.

        Nothing happens if that phase is over. Raises InvalidRequest where weights do not fit the arms.
        """
        running = {(r.name, r.phase): r for r in self.snapshot.all()}
        if (one := running.get((name, phase))) is None:
            return
        changed = one.reweighted(start, weights)
        kept = {epoch.start for epoch in changed.epochs}
        epochs = {**self._weights.get((name, phase), {}), start: weights}
        self._weights[name, phase] = {at: found for at, found in epochs.items() if at in kept}
        self.snapshot = snapshot_of({**running, (name, phase): changed}.values())

    def _weighted(self, one: Running) -> Running:
        for start, weights in sorted(self._weights.get((one.name, one.phase), {}).items()):
            one = one.reweighted(start, weights)
        return one

    def assign(self, request: Request, decision: Decision, now: float) -> Assignment | Outside | None:
        """The arm among the experiments on the route of `decision`; None if there is nothing to say.

        `now` is unix seconds.
        """
        snapshot = self.snapshot
        if not snapshot.split or "/versions/" in request.routing.adapter:
            return None
        route = decision.adapter.name if decision.adapter else BASE
        return self._first(snapshot.split.get(route, ()), request, now)

    def router(self, request: Request, now: float) -> Assignment | Outside | None:
        """The arm among the router experiments: requests that name an adapter take no part."""
        if not self.snapshot.routers or request.routing.adapter:
            return None
        return self._first(self.snapshot.routers, request, now)

    def _first(
        self, candidates: Iterable[Running], request: Request, now: float
    ) -> Assignment | Outside | None:
        outside = None
        for one in candidates:
            unit = unit_of(one, request)
            found = one.at(now).assign(unit)
            if isinstance(found, Assigned):
                self._look(one, unit, request, now)
                return Assignment(one, one.arms[found.arm], found.propensity, unit_hash(unit))
            outside = outside or _told(one, found)
        return outside

    def _look(self, one: Running, unit: str, request: Request, now: float) -> None:
        if (one.name, one.phase) in self._looked:
            return
        if why := request_id_like(unit, request.request_id, now):
            self._looked.add((one.name, one.phase))
            label = f"label {one.spec.unit_label!r}" if one.spec.unit_label else "routing.unit"
            self.suspect(one.name, f"a unit ({label}) {why}: units must be the same at every request")

    def suspect(self, name: str, text: str) -> None:
        """Warn about an experiment: once in the log, and in `warnings` until its next phase."""
        self._warned.add(name, text)

    def warnings(self, name: str) -> tuple[str, ...]:
        """What deserves a second look."""
        return self._warned.of(name)


def unit_of(one: Running, request: Request) -> str:
    """The unit as the request has it; empty if it has none."""
    label = one.spec.unit_label
    return request.labels.get(label, "") if label else request.routing.unit


def _told(one: Running, found: NotAssigned) -> Outside | None:
    return Outside(one.name, found.reason) if found.reason is Reason.UNIT_MISSING else None
