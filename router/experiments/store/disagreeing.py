"""What two routers said of the same requests, and the units for which they differed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TypeAlias

from sqlalchemy import select

from router.experiments.model import Disagreement
from router.experiments.store.bulk import Clash
from router.experiments.store.series import EVERYTHING, PhaseInfo
from router.experiments.store.session import Session
from router.experiments.store.tables import disagreements
from router.experiments.store.units import Unit

Said: TypeAlias = tuple[PhaseInfo, Disagreement]


def disagree(session: Session, found: Sequence[Disagreement]) -> None:
    """Keep them, and move their units to the sums of those for which the routers differed."""
    infos = session.phases.named(session.conn, {d.experiment for d in found})
    new: dict[tuple[int, str], Said] = {}
    for d in found:
        if info := infos.get((d.experiment, d.phase)):
            new.setdefault((info.id, d.response_id), (info, d))
    for place in _there(session, new):
        new.pop(place, None)
    rows = ((*key, d.unit, d.time, d.control, d.treatment) for key, (_, d) in new.items())
    session.bulk.write(session.conn, disagreements, rows, Clash.KEEP)
    differing = [(info, d.unit) for info, d in new.values() if d.control != d.treatment]
    session.find(differing)
    session.load({EVERYTHING})
    for info, name in differing:
        if unit := session.named.get((info.id, name)):
            unit.differ()
    session.write_units()
    session.finish()


def _there(session: Session, places: Collection[tuple[int, str]]) -> list[tuple[int, str]]:
    of = disagreements.c
    which = [session.bulk.among(of.phase, {phase for phase, _ in places})]
    which.append(session.bulk.among(of.response_id, {response for _, response in places}))
    rows = session.conn.execute(select(of.phase, of.response_id).where(*which))
    return [(phase, response) for phase, response in rows]


def mark_differing(session: Session, new: Sequence[Unit]) -> None:
    """New units of which a disagreement was kept before."""
    of = disagreements.c
    by_name = {(unit.info.id, unit.unit): unit for unit in new}
    which = [session.bulk.among(of.phase, {p for p, _ in by_name}), of.control != of.treatment]
    query = select(of.phase, of.unit).where(*which, session.bulk.among(of.unit, {n for _, n in by_name}))
    for place in session.conn.execute(query.distinct()).all():
        if unit := by_name.get(tuple(place)):
            unit.differ()
