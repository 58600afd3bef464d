"""Outcomes come in: each key once, at the units it belongs to, or waiting for them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sqlalchemy import select

from router.experiments.model import Accepted, Outcome
from router.experiments.store.history import remember_later, seek_later
from router.experiments.store.placing import Placed, place
from router.experiments.store.series import EVERYTHING
from router.experiments.store.session import Session
from router.experiments.store.tables import experiments, exposures, outcomes, phases, units
from router.experiments.store.units import Unit


def record(session: Session, said: Sequence[Outcome]) -> tuple[Accepted, ...]:
    """What became of each, in order."""
    once = {outcome.key: outcome for outcome in reversed(said)}  # the first of each key
    statuses = _known(session, once)
    fresh = [Placed(outcome) for key, outcome in once.items() if key not in statuses]
    _by_response(session, [p for p in fresh if p.outcome.response_id])
    _by_unit(session, [p for p in fresh if not p.outcome.response_id])
    told = seek_later(session, fresh)
    session.load({EVERYTHING} if told else {p.outcome.metric for p in fresh})
    place(session, fresh)
    remember_later(session, told)
    session.finish()
    new = {p.outcome.key: p.status for p in fresh}
    return tuple(_answer(outcome.key, new, statuses) for outcome in said)


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
        said = placed.outcome
        there = [(n, u) for n, u in shown.get((said.experiment, said.unit), ()) if u.first <= said.time]
        placed.units += [max(there, key=lambda found: found[0])[1]] if there else []
