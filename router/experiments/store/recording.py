"""Outcomes come in: each key once, at the units it belongs to, or waiting for them.

An outcome from before a phase is the unit's past in it, which a covariate may read, in whatever experiment
it was told.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select

from router.experiments.model import Accepted, Outcome
from router.experiments.store.database import Clash
from router.experiments.store.series import EVERYTHING, PhaseInfo
from router.experiments.store.session import Session, Unit
from router.experiments.store.tables import WAITING, experiments, exposures, outcomes, phases, units


def record(session: Session, reported: Sequence[Outcome], room: int = sys.maxsize) -> tuple[Accepted, ...]:
    """What became of each, in order. `room`: so many that belong to nothing are kept at most."""
    once = {outcome.key: outcome for outcome in reversed(reported)}  # the first of each key
    statuses = _known(session, once)
    fresh = [Placed(outcome) for key, outcome in once.items() if key not in statuses]
    _by_response(session, [p for p in fresh if p.outcome.response_id])
    _by_unit(session, [p for p in fresh if not p.outcome.response_id])
    statuses |= _turned_away(reported, fresh, room)
    fresh = [p for p in fresh if p.outcome.key not in statuses]
    told = seek_later(session, fresh)
    session.load({EVERYTHING} if told else {p.outcome.metric for p in fresh})
    place_outcomes(session, fresh)
    remember_later(session, told)
    session.finish()
    new = {p.outcome.key: p.status for p in fresh}
    return tuple(_answer(outcome.key, new, statuses) for outcome in reported)


def _turned_away(reported: Iterable[Outcome], fresh: Iterable[Placed], room: int) -> dict[str, Accepted]:
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


def _known(session: Session, keys: Iterable[str]) -> dict[str, Accepted]:
    """What became of the keys that are there."""
    of = outcomes.c
    found: dict[str, Accepted] = {}
    here = session.bulk.among(of.key, list(keys))
    for key, phase, late in session.conn.execute(select(of.key, of.phase, of.late).where(here)):
        status = Accepted.UNKNOWN if phase == 0 else Accepted.LATE if late else Accepted.COUNTED
        if found.get(key) is not Accepted.COUNTED:
            found[key] = status
    return found


def _by_response(session: Session, found: Sequence[Placed]) -> None:
    """An outcome of a response is one of every unit that the response was exposed to."""
    by_response: dict[str, list[Placed]] = {}
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


def _by_unit(session: Session, found: Sequence[Placed]) -> None:
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
class Placed:
    """An outcome with the units it is newly an outcome of. `known`: names it was under before."""

    outcome: Outcome
    units: list[Unit] = field(default_factory=list)
    known: frozenset[str] = frozenset()

    @property
    def status(self) -> Accepted:
        """What becomes of it."""
        if not self.units:
            return Accepted.UNKNOWN
        counted = any(_is_counted(self.outcome, unit) for unit in self.units)
        return Accepted.COUNTED if counted else Accepted.LATE


def _is_counted(outcome: Outcome, unit: Unit) -> bool:
    """Whether it counts for a unit; if not it is late. It must have happened in the unit's window, and have
    come before the window and its grace were over: then a unit may be judged, and nothing changes it."""
    return unit.in_window(outcome.time) and unit.in_time(outcome.received)


def place_outcomes(session: Session, found: Iterable[Placed]) -> None:
    """Count them, and keep their rows. Values must be loaded."""
    now = time.time()
    rows = (row for placed in found for row in _rows(placed, now))
    session.bulk.write(session.conn, outcomes, rows, Clash.KEEP)


def _rows(placed: Placed, now: float) -> Iterator[tuple[Any, ...]]:
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
            unit.count(outcome.metric, outcome.value, outcome.time)
        yield outcome.key, unit.info.id, unit.id, *what, int(late), now, outcome.received
    if not placed.units:
        yield outcome.key, 0, None, *what, 0, now, outcome.received


def seek_later(session: Session, found: Collection[Placed]) -> list[tuple[Placed, PhaseInfo, str]]:
    """Outcomes that are now told of units whose phase began after them; the units are read.

    Together with `remember_later` it makes the order of arrival count for nothing.
    """
    infos = session.phases.with_past(session.conn)
    told = [
        (placed, info, name)
        for placed in found
        for info in infos
        if placed.outcome.metric in info.covariates and placed.outcome.time < info.started
        for name in _names(placed) - placed.known
    ]
    session.find((info, name) for _, info, name in told)
    return told


def remember_later(session: Session, told: Iterable[tuple[Placed, PhaseInfo, str]]) -> None:
    """Add them to the past of those units that were there before; `remember` is for new ones."""
    for placed, info, name in told:
        unit = session.named.get((info.id, name))
        if unit is not None and unit.old is not None:
            unit.recall(placed.outcome.metric, placed.outcome.value, placed.outcome.received)


def remember_past(session: Session, fresh: Iterable[Unit]) -> None:
    """Give new units their past. Units and outcomes must be written."""
    by_phase: dict[int, dict[str, Unit]] = {}
    for unit in fresh:
        if unit.info.covariates:
            by_phase.setdefault(unit.info.id, {})[unit.unit] = unit
    for named in by_phase.values():
        info = next(iter(named.values())).info
        recall_past(session, info, named, info.covariates)


def recall_past(
    session: Session, info: PhaseInfo, named: Mapping[str, Unit], metrics: Collection[str]
) -> None:
    """Give units of a phase, by name, their past: each outcome from before the phase, once."""
    of, among = outcomes.c, session.bulk.among
    before = (among(of.metric, metrics), of.time < info.started)
    placed = select(of.key, units.c.unit, of.metric, of.value, of.came).join_from(
        outcomes, units, of.unit_id == units.c.id
    )
    waiting = select(of.key, of.unit, of.metric, of.value, of.came).where(WAITING)
    seen: set[tuple[str, str]] = set()
    for query, name in ((placed, units.c.unit), (waiting, of.unit)):
        for key, unit, *row in session.conn.execute(query.where(among(name, named), *before)):
            if (key, unit) not in seen:
                seen.add((key, unit))
                named[unit].recall(*row)


def _names(placed: Placed) -> set[str]:
    return {u.unit for u in placed.units} | ({placed.outcome.unit} - {""})
