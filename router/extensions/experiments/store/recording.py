"""Exposures and outcomes come in.

Each response is kept once in a phase, each unit once, each outcome key once. The first exposure of a unit
fixes its arm, its time and its segments, in the transaction that writes it, so that servers agree. An
outcome belongs to the units of its response, or to the unit that it names; where there is none yet, it waits
for its exposure. What was recorded of a unit before its first exposure, and happened before the phase, is its
past, which a covariate reads, in whatever experiment it was recorded.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from sqlalchemy import ColumnElement, delete, func, select

from router.extensions.experiments.model import (
    BUILT_IN,
    NO_VALUE,
    OTHER_VALUE,
    Accepted,
    Exposure,
    SegmentSpec,
    StoredOutcome,
)
from router.extensions.experiments.store.series import RESPONSES, PhaseInfo
from router.extensions.experiments.store.session import Unit, WriteSession
from router.extensions.experiments.store.tables import (
    WAITING,
    digests,
    experiments,
    exposures,
    outcomes,
    phases,
    units,
)
from router.extensions.experiments.times import UNSERVED
from router.shared.database import Clash


def record(
    session: WriteSession, reported: Sequence[StoredOutcome], room: int = sys.maxsize
) -> tuple[Accepted, ...]:
    """What became of each, in order. `room`: so many that belong to nothing are kept at most."""
    once = {outcome.key: outcome for outcome in reversed(reported)}  # the first of each key
    statuses = _known(session, once)
    fresh = [PlacedOutcome(outcome) for key, outcome in once.items() if key not in statuses]
    _by_response(session, [p for p in fresh if p.outcome.response_id])
    _by_unit(session, [p for p in fresh if not p.outcome.response_id])
    statuses |= _turned_away(reported, fresh, room)
    fresh = [p for p in fresh if p.outcome.key not in statuses]
    session.load({p.outcome.metric for p in fresh})
    place_outcomes(session, fresh)
    session.finish()
    new = {p.outcome.key: p.status for p in fresh}
    return tuple(_answer(outcome.key, new, statuses) for outcome in reported)


def _turned_away(
    reported: Iterable[StoredOutcome], fresh: Iterable[PlacedOutcome], room: int
) -> dict[str, Accepted]:
    """Those that belong to nothing and have no room: the last ones."""
    of_nothing = {p.outcome.key for p in fresh if not p.units}
    waiting = [key for key in dict.fromkeys(outcome.key for outcome in reported) if key in of_nothing]
    return dict.fromkeys(waiting[room:], Accepted.NOT_KEPT)


def _answer(key: str, new: dict[str, Accepted], known: dict[str, Accepted]) -> Accepted:
    """A key's first outcome gets its status; any further one is a duplicate if that was counted."""
    if key in new:
        known[key] = new.pop(key)
        return known[key]
    return Accepted.DUPLICATE if known[key] is Accepted.COUNTED else known[key]


def _known(session: WriteSession, keys: Iterable[str]) -> dict[str, Accepted]:
    """What became of the keys that are there."""
    of = outcomes.c
    found: dict[str, Accepted] = {}
    here = session.bulk.among(of.key, list(keys))
    for key, phase, late in session.conn.execute(select(of.key, of.phase, of.late).where(here)):
        status = Accepted.UNKNOWN if phase == 0 else Accepted.LATE if late else Accepted.COUNTED
        if found.get(key) is not Accepted.COUNTED:
            found[key] = status
    return found


def _by_response(session: WriteSession, found: Sequence[PlacedOutcome]) -> None:
    """An outcome of a response is one of every unit that the response was exposed to."""
    by_response: dict[str, list[PlacedOutcome]] = {}
    for placed in found:
        by_response.setdefault(placed.outcome.response_id, []).append(placed)
    if not by_response:
        return
    of = exposures.c
    here = session.bulk.among(of.response_id, by_response)
    rows = session.conn.execute(select(of.response_id, of.unit_id).where(here)).all()
    session.find_ids({unit for _, unit in rows})
    for response, key in rows:
        if unit := session.units.get(key):
            for placed in by_response[response]:
                placed.units.append(unit)


def _by_unit(session: WriteSession, found: Sequence[PlacedOutcome]) -> None:
    """One of a unit belongs to the last phase that it was exposed in by then."""
    if not found:
        return
    among = session.bulk.among
    rows = session.conn.execute(
        select(units.c.id, units.c.unit, experiments.c.name, phases.c.number)
        .join_from(units, phases, units.c.phase == phases.c.id)
        .join(experiments)
        .where(among(units.c.unit, {p.outcome.unit for p in found}))
        .where(among(experiments.c.name, {p.outcome.experiment for p in found}))
    ).all()
    session.find_ids({row.id for row in rows})
    shown: dict[tuple[str, str], list[tuple[int, Unit]]] = {}
    for row in rows:
        shown.setdefault((row.name, row.unit), []).append((row.number, session.units[row.id]))
    for placed in found:
        outcome = placed.outcome
        there = [
            (n, u) for n, u in shown.get((outcome.experiment, outcome.unit), ()) if u.first <= outcome.time
        ]
        placed.units += [max(there, key=lambda found: found[0])[1]] if there else []


@dataclass(slots=True)
class PlacedOutcome:
    """An outcome with the units it is newly an outcome of."""

    outcome: StoredOutcome
    units: list[Unit] = field(default_factory=list)

    @property
    def status(self) -> Accepted:
        """What becomes of it."""
        if not self.units:
            return Accepted.UNKNOWN
        counted = any(_is_counted(self.outcome, unit) for unit in self.units)
        return Accepted.COUNTED if counted else Accepted.LATE


def _is_counted(outcome: StoredOutcome, unit: Unit) -> bool:
    """Whether it counts for a unit; if not it is late. It must have happened in the window of what reads it,
    and have come before that window and its grace were over."""
    return unit.counts(outcome.metric, outcome.time, outcome.received)


def place_outcomes(session: WriteSession, found: Iterable[PlacedOutcome]) -> None:
    """Count them, and keep their rows. Values must be loaded."""
    now = time.time()
    rows = (row for placed in found for row in _rows(placed, now))
    session.bulk.write(session.conn, outcomes, rows, Clash.KEEP)


def _rows(placed: PlacedOutcome, now: float) -> Iterator[tuple[Any, ...]]:
    outcome = placed.outcome
    what = (
        outcome.metric,
        outcome.value,
        outcome.time,
        outcome.response_id,
        outcome.experiment,
        outcome.unit,
    )
    for unit in placed.units:
        late = not _is_counted(outcome, unit)
        if not late:
            unit.count(outcome.metric, outcome.value, outcome.time, outcome.received)
        if late and outcome.metric in unit.info.readings and outcome.metric not in BUILT_IN:
            unit.late += 1
        unit.unserved += outcome.metric == UNSERVED
        yield outcome.key, unit.info.id, unit.id, *what, int(late), now, outcome.received
    if not placed.units:
        yield outcome.key, 0, None, *what, 0, now, outcome.received


def remember_past(session: WriteSession, fresh: Iterable[Unit]) -> None:
    """Give new units their past, each outcome once. Units and outcomes must be written."""
    by_phase: dict[int, dict[str, Unit]] = {}
    for unit in fresh:
        if unit.info.covariates:
            by_phase.setdefault(unit.info.id, {})[unit.unit] = unit
    of, among = outcomes.c, session.bulk.among
    placed = select(of.key, units.c.unit, of.metric, of.value).join_from(
        outcomes, units, of.unit_id == units.c.id
    )
    waiting = select(of.key, of.unit, of.metric, of.value).where(WAITING)
    for named in by_phase.values():
        info = next(iter(named.values())).info
        before, seen = (among(of.metric, info.covariates), of.time < info.started), set[tuple[str, str]]()
        for query, name in ((placed, units.c.unit), (waiting, of.unit)):
            for key, unit, *row in session.conn.execute(query.where(among(name, named), *before)):
                if (key, unit) not in seen:
                    seen.add((key, unit))
                    named[unit].recall(*row)


log = logging.getLogger(__name__)
_OUTCOME = [
    outcomes.c[n] for n in ("key", "metric", "value", "time", "response_id", "experiment", "unit", "came")
]
Shown: TypeAlias = tuple[PhaseInfo, Exposure]


def expose(session: WriteSession, reported: Sequence[Exposure]) -> None:
    """Keep what is new of them."""
    shown, elsewhere = _fresh(session, _in_their_phases(session, reported))
    if not shown:
        return
    session.find((info, e.unit) for info, e in shown)
    new = _new_units(session, shown)
    answering = [(e, session.named[info.id, e.unit]) for info, e in shown]
    adopted = _waiting_outcomes(session, answering, new, elsewhere)
    session.load({RESPONSES} | {p.outcome.metric for p in adopted})
    for e, unit in answering:
        unit.shown(e.arm, e.time, bool(e.degraded))
    session.write_units()
    _keep(session, answering)
    _forget_waiting(session, [p.outcome.key for p in adopted])
    place_outcomes(session, adopted)
    remember_past(session, new)
    session.finish()


def _in_their_phases(session: WriteSession, reported: Sequence[Exposure]) -> list[Shown]:
    infos = session.phases.named(session.conn, {e.experiment for e in reported})
    lost = {(e.experiment, e.phase) for e in reported} - infos.keys()
    for name, phase in sorted(lost):
        log.warning("exposures of %s, phase %d, which is not there, are dropped", name, phase)
    return [(infos[e.experiment, e.phase], e) for e in reported if (e.experiment, e.phase) in infos]


def _fresh(session: WriteSession, known: Sequence[Shown]) -> tuple[list[Shown], dict[str, list[int]]]:
    """Those not kept yet, and the units that their responses were exposed to in other phases."""
    found: dict[tuple[str, int], Shown] = {}
    for info, e in known:
        found.setdefault((e.response_id, info.id), (info, e))
    here = session.bulk.among(exposures.c.response_id, {key[0] for key in found})
    query = select(exposures.c.response_id, exposures.c.phase, exposures.c.unit_id).where(here)
    elsewhere: dict[str, list[int]] = {}
    for response, phase, unit in session.conn.execute(query):
        found.pop((response, phase), None)
        elsewhere.setdefault(response, []).append(unit)
    return list(found.values()), elsewhere


def _new_units(session: WriteSession, shown: Iterable[Shown]) -> list[Unit]:
    new: dict[tuple[int, str], Shown] = {}
    for info, e in shown:
        if (info.id, e.unit) not in session.named:
            new.setdefault((info.id, e.unit), (info, e))
    return [session.add(info, e, _segments_json(info, e)) for info, e in new.values()]


def _keep(session: WriteSession, answering: Sequence[tuple[Exposure, Unit]]) -> None:
    rows = ((e.response_id, u.info.id, u.id, e.time) for e, u in answering)
    session.bulk.write(session.conn, exposures, rows, Clash.KEEP)
    texts = {
        (u.info.id, e.arm, f"{e.adapter_digest}/{e.base_digest}/{e.router_digest}"): None
        for e, u in answering
        if not e.degraded
    }
    count = select(func.coalesce(func.max(digests.c.place), 0))
    there = session.conn.execute(count).scalar_one()
    found = ((*text, there + i) for i, text in enumerate(texts, 1))
    session.bulk.write(session.conn, digests, found, Clash.KEEP)


def _forget_waiting(session: WriteSession, keys: Sequence[str]) -> None:
    """Their rows are written anew at their units."""
    if keys:
        here = session.bulk.among(outcomes.c.key, keys)
        session.conn.execute(delete(outcomes).where(WAITING, here))


def _waiting_outcomes(
    session: WriteSession,
    answering: Sequence[tuple[Exposure, Unit]],
    new: Sequence[Unit],
    elsewhere: Mapping[str, Sequence[int]],
) -> list[PlacedOutcome]:
    """Those that now have a unit: of these responses, and of these new units."""
    return [*_of_responses(session, answering, elsewhere), *_of_units(session, answering, new)]


def _of_responses(
    session: WriteSession, answering: Sequence[tuple[Exposure, Unit]], elsewhere: Mapping[str, Sequence[int]]
) -> Iterator[PlacedOutcome]:
    by_response: dict[str, list[Unit]] = {}
    for e, unit in answering:
        by_response.setdefault(e.response_id, []).append(unit)
    here = session.bulk.among(outcomes.c.response_id, by_response)
    for outcome in _read_outcomes(session, WAITING, here):
        yield PlacedOutcome(outcome, by_response[outcome.response_id])
    if elsewhere:
        yield from _counted_elsewhere(session, by_response, elsewhere)


def _counted_elsewhere(
    session: WriteSession, by_response: Mapping[str, list[Unit]], elsewhere: Mapping[str, Sequence[int]]
) -> Iterator[PlacedOutcome]:
    """Outcomes that another experiment has of the same response already."""
    ids = {unit for response in elsewhere for unit in elsewhere[response]}
    query = select(*_OUTCOME)
    found = {}
    for row in session.conn.execute(query.where(session.bulk.among(outcomes.c.unit_id, ids))):
        outcome = StoredOutcome(*row)
        if outcome.response_id in by_response:
            found[outcome.key] = outcome
    for outcome in found.values():
        yield PlacedOutcome(outcome, by_response[outcome.response_id])


def _of_units(
    session: WriteSession, answering: Iterable[tuple[Exposure, Unit]], new: Iterable[Unit]
) -> Iterator[PlacedOutcome]:
    """Told of a unit by experiment, at or after its first exposure; the phase that came first has it."""
    fresh = {unit.id for unit in new}
    first: dict[tuple[str, str], list[Unit]] = {}
    for e, unit in answering:
        if unit.id in fresh:
            fresh.discard(unit.id)
            first.setdefault((e.experiment, e.unit), []).append(unit)
    if not first:
        return
    here = session.bulk.among(outcomes.c.unit, {name for _, name in first})
    for outcome in _read_outcomes(session, WAITING, here):
        shown = [u for u in first.get((outcome.experiment, outcome.unit), ()) if outcome.time >= u.first]
        if shown:
            yield PlacedOutcome(outcome, shown[:1])


def _read_outcomes(session: WriteSession, *which: ColumnElement[bool]) -> Iterator[StoredOutcome]:
    for row in session.conn.execute(select(*_OUTCOME).where(*which)).all():
        yield StoredOutcome(*row)


def _segments_json(info: PhaseInfo, e: Exposure) -> str:
    """The column `segments` of a new unit, by its first exposure."""
    if not info.segments:
        return ""
    found = {segment.label: _segment_value(segment, e) for segment in info.segments}
    return json.dumps(found, ensure_ascii=False)


def _segment_value(segment: SegmentSpec, e: Exposure) -> str:
    value = e.segments.get(segment.label, NO_VALUE)
    return value if value in (*segment.values, NO_VALUE) else OTHER_VALUE
