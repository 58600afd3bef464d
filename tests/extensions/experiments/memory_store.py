"""A store of dicts for tests: keeps every row, computes all sums anew when asked. Oracle of the SQL one."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from itertools import count

from router.errors import AlreadyExists, ExperimentNotFound, StaleEtag, StoreDown
from router.extensions.experiments.model import (
    NO_VALUE,
    OTHER_VALUE,
    Accepted,
    AuditEntry,
    Experiment,
    ExperimentPhase,
    Exposure,
    StoredOutcome,
)
from router.extensions.experiments.store.series import PhaseData
from router.extensions.experiments.store.store import ExperimentStore
from tests.extensions.experiments.memory_sums import Kept, Place, Rows, counts, phase_data, windows

log = logging.getLogger(__name__)


class MemoryStore:
    """As `router.extensions.experiments.store.store.Store`; nothing outlives it.

    Set `down` and every call raises StoreDown, until it is unset.
    """

    def __init__(self) -> None:
        self.down = False
        self.experiments: dict[str, Experiment] = {}
        self.rows: dict[Place, Rows] = {}
        self.outcomes: dict[str, Kept] = {}
        self.acts: list[AuditEntry] = []
        self.salts: dict[str, str] = {}
        self.versions = count(1)

    def __getattribute__(self, name: str):
        if name in vars(ExperimentStore) and not name.startswith("_") and self.down:
            raise StoreDown("the database cannot be reached")
        return super().__getattribute__(name)

    def salt(self, purpose: str) -> str:
        return self.salts.setdefault(purpose, f"salt-of-{purpose}")

    def create(self, experiment: Experiment) -> Experiment:
        if experiment.name in self.experiments:
            raise AlreadyExists(f"{experiment.resource} exists already", resource=experiment.resource)
        return self._put(experiment)

    def _put(self, experiment: Experiment) -> Experiment:
        kept = replace(experiment, etag=f"etag-{next(self.versions)}")
        self.experiments[kept.name] = kept
        for phase in kept.phases:
            self.rows.setdefault((kept.name, phase.number), Rows())
        return kept

    def get(self, name: str) -> Experiment:
        if name not in self.experiments:
            raise ExperimentNotFound(name)
        return self.experiments[name]

    def tidy(self) -> None:
        """Nothing of a deleted experiment is kept."""

    def list(self) -> tuple[Experiment, ...]:
        return tuple(self.experiments[name] for name in sorted(self.experiments))

    def replace(self, experiment: Experiment, audit: AuditEntry) -> Experiment:
        self._check(self.get(experiment.name), experiment.etag)
        self.acts.append(audit)
        return self._put(experiment)

    def _check(self, found: Experiment, etag: str) -> None:
        if found.etag != etag:
            raise StaleEtag(f"{found.resource} changed since it was read: read it again, then change it")

    def delete(self, name: str, etag: str = "") -> None:
        found = self.get(name)
        self._check(found, etag or found.etag)
        del self.experiments[name]
        self.acts = [act for act in self.acts if act.experiment != name]
        self.rows = {place: rows for place, rows in self.rows.items() if place[0] != name}
        for key, kept in list(self.outcomes.items()):
            left = {place: unit for place, unit in kept.places.items() if place[0] != name}
            gone = kept.outcome.experiment == name or (kept.places and not left)
            kept.places = left
            if gone:
                del self.outcomes[key]

    def expose(self, exposures: Sequence[Exposure]) -> None:
        fresh: list[tuple[Place, str]] = []
        for exposure in exposures:
            place = (exposure.experiment, exposure.phase)
            rows = self.rows.get(place)
            if rows is None:
                log.warning("an exposure of %s, phase %d, which is not there, is dropped", *place)
            elif exposure.response_id not in rows.exposures:
                rows.exposures[exposure.response_id] = exposure
                new = exposure.unit not in rows.firsts
                rows.firsts.setdefault(exposure.unit, exposure)
                if new:
                    rows.segments[exposure.unit] = self._segments(self._phase(*place), exposure)
                    fresh.append((place, exposure.unit))
                self._adopt(place, exposure, new)
        for place, unit in fresh:
            self.rows[place].past[unit] = self._past(self._phase(*place), unit)

    def _past(self, phase: ExperimentPhase, unit: str) -> list[StoredOutcome]:
        return [
            kept.outcome
            for kept in self.outcomes.values()
            if kept.outcome.time < phase.started and unit in self._units(kept)
        ]

    def _units(self, kept: Kept) -> set[str]:
        return set(kept.places.values()) or {kept.outcome.unit}

    def _segments(self, phase: ExperimentPhase, exposure: Exposure) -> dict[str, str]:
        found = {}
        for segment in phase.spec.segments:
            value = exposure.segments.get(segment.label, NO_VALUE)
            found[segment.label] = value if value in (*segment.values, NO_VALUE) else OTHER_VALUE
        return found

    def _adopt(self, place: Place, exposure: Exposure, new: bool) -> None:
        """Outcomes that were here before their exposure."""
        for kept in self.outcomes.values():
            said = kept.outcome
            by_unit = (said.experiment, said.unit) == (exposure.experiment, exposure.unit)
            waits = new and by_unit and not kept.places and said.time >= exposure.time
            if said.response_id == exposure.response_id or waits:
                kept.places[place] = exposure.unit

    def record(self, outcomes: Sequence[StoredOutcome]) -> tuple[Accepted, ...]:
        return tuple(self._record(outcome) for outcome in outcomes)

    def _record(self, outcome: StoredOutcome) -> Accepted:
        if outcome.key in self.outcomes:
            found = self._status(self.outcomes[outcome.key])
            return Accepted.DUPLICATE if found is Accepted.COUNTED else found
        kept = Kept(outcome, self._places(outcome))
        self.outcomes[outcome.key] = kept
        return self._status(kept)

    def _places(self, outcome: StoredOutcome) -> dict[Place, str]:
        if outcome.response_id:
            rid = outcome.response_id
            return {p: rows.exposures[rid].unit for p, rows in self.rows.items() if rid in rows.exposures}
        fitting = [
            place
            for place, rows in self.rows.items()
            if place[0] == outcome.experiment
            and outcome.unit in rows.firsts
            and rows.firsts[outcome.unit].time <= outcome.time
        ]
        return {max(fitting): outcome.unit} if fitting else {}

    def _status(self, kept: Kept) -> Accepted:
        if not kept.places:
            return Accepted.UNKNOWN
        counted = any(self._counts(kept.outcome, *found) for found in kept.places.items())
        return Accepted.COUNTED if counted else Accepted.LATE

    def _counts(self, outcome: StoredOutcome, place: Place, unit: str) -> bool:
        phase, first = self._phase(*place), self.rows[place].firsts[unit]
        read = windows(phase, outcome.metric) or [phase.spec.window]
        return any(counts(outcome, phase, first, window) for window in read)

    def data(self, name: str, phase: int) -> PhaseData:
        place, rows = self._of(name, phase)
        return phase_data(self._phase(name, phase), place, rows, self.outcomes.values())

    def _phase(self, name: str, number: int) -> ExperimentPhase:
        phases = self.get(name).phases
        found = next((p for p in phases if p.number == number), None)
        if found is None:
            there = ", ".join(str(p.number) for p in phases) or "none"
            raise ExperimentNotFound(name, f": phase {number} is not there, there are: {there}")
        return found

    def _of(self, name: str, number: int) -> tuple[Place, Rows]:
        self._phase(name, number)
        return (name, number), self.rows[name, number]

    def set_peak(self, name: str, phase: int, peak: float) -> None:
        _, rows = self._of(name, phase)
        rows.peak = max(rows.peak, peak)

    def audit(self, entry: AuditEntry) -> None:
        self.acts.append(entry)

    def trail(self, name: str) -> tuple[AuditEntry, ...]:
        return tuple(sorted((a for a in self.acts if a.experiment == name), key=lambda a: a.time))

    def close(self) -> None:
        pass
