"""Exposures come in: each response once in a phase, each unit once; waiting outcomes find their place."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import TypeAlias

from sqlalchemy import delete, func, select

from router.experiments.model import Exposure
from router.experiments.store.bulk import Clash
from router.experiments.store.disagreeing import mark_differing
from router.experiments.store.history import remember, remember_later, seek_later
from router.experiments.store.placing import place
from router.experiments.store.series import EVERYTHING, RESPONSES, PhaseInfo
from router.experiments.store.session import Session
from router.experiments.store.tables import WAITING, digests, exposures, outcomes
from router.experiments.store.units import Unit
from router.experiments.store.waiting import waiting

log = logging.getLogger(__name__)
Shown: TypeAlias = tuple[PhaseInfo, Exposure]


def expose(session: Session, said: Sequence[Exposure]) -> None:
    """Keep what is new of them."""
    shown, elsewhere = _fresh(session, _known(session, said))
    if not shown:
        return
    session.find((info, e.unit) for info, e in shown)
    new = _new_units(session, shown)
    answering = [(e, session.named[info.id, e.unit]) for info, e in shown]
    adopted = waiting(session, answering, new, elsewhere)
    told = seek_later(session, adopted)
    session.load({EVERYTHING} if told else {RESPONSES} | {p.outcome.metric for p in adopted})
    for e, unit in answering:
        unit.shown(e.arm, e.time, bool(e.degraded))
    mark_differing(session, new)
    session.write_units()
    _keep(session, answering)
    _forget_waiting(session, [p.outcome.key for p in adopted])
    place(session, adopted)
    remember_later(session, told)
    remember(session, new)
    session.finish()


def _known(session: Session, said: Sequence[Exposure]) -> list[Shown]:
    infos = session.phases.named(session.conn, {e.experiment for e in said})
    lost = {(e.experiment, e.phase) for e in said} - infos.keys()
    for name, phase in sorted(lost):
        log.warning("exposures of %s, phase %d, which is not there, are dropped", name, phase)
    return [(infos[e.experiment, e.phase], e) for e in said if (e.experiment, e.phase) in infos]


def _fresh(session: Session, known: Sequence[Shown]) -> tuple[list[Shown], dict[str, list[int]]]:
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


def _new_units(session: Session, shown: Iterable[Shown]) -> list[Unit]:
    return [session.add(info, e) for info, e in shown if (info.id, e.unit) not in session.named]


def _keep(session: Session, answering: Sequence[tuple[Exposure, Unit]]) -> None:
    rows = (
        (e.response_id, u.info.id, u.id, e.arm, e.time, e.propensity, e.sampling, e.degraded)
        for e, u in answering
    )
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


def _forget_waiting(session: Session, keys: Sequence[str]) -> None:
    """Their rows are written anew at their units."""
    if keys:
        here = session.bulk.among(outcomes.c.key, keys)
        session.conn.execute(delete(outcomes).where(WAITING, here))
