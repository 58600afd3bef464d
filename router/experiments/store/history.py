"""What units did before a phase: outcomes under the same name of the unit, in whatever experiment."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

from sqlalchemy import select

from router.experiments.store.placing import Placed
from router.experiments.store.series import PhaseInfo
from router.experiments.store.session import Session
from router.experiments.store.tables import WAITING, outcomes, units
from router.experiments.store.units import Unit


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
            unit.recall(placed.outcome.metric, placed.outcome.value)


def remember(session: Session, fresh: Iterable[Unit]) -> None:
    """Give new units their past. Units and outcomes must be written."""
    by_phase: dict[int, dict[str, Unit]] = {}
    for unit in fresh:
        if unit.info.covariates:
            by_phase.setdefault(unit.info.id, {})[unit.unit] = unit
    for named in by_phase.values():
        info = next(iter(named.values())).info
        for name, metric, value in _past(session, info, named):
            named[name].recall(metric, value)


def _past(session: Session, info: PhaseInfo, named: Mapping[str, Unit]) -> Iterator[tuple[str, str, float]]:
    """(unit, metric, value) of each outcome from before the phase, once."""
    of, among = outcomes.c, session.bulk.among
    before = (among(of.metric, info.covariates), of.time < info.started)
    placed = select(of.key, units.c.unit, of.metric, of.value).join_from(
        outcomes, units, of.unit_id == units.c.id
    )
    waiting = select(of.key, of.unit, of.metric, of.value).where(WAITING)
    seen: set[tuple[str, str]] = set()
    for query, name in ((placed, units.c.unit), (waiting, of.unit)):
        for key, unit, metric, value in session.conn.execute(query.where(among(name, named), *before)):
            if (key, unit) not in seen:
                seen.add((key, unit))
                yield unit, metric, value


def _names(placed: Placed) -> set[str]:
    return {u.unit for u in placed.units} | ({placed.outcome.unit} - {""})
