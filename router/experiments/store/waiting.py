"""Outcomes that were here before their exposure: a flush may come after the client's word."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from sqlalchemy import ColumnElement, select

from router.experiments.model import Exposure, Outcome
from router.experiments.store.placing import Placed
from router.experiments.store.session import Session
from router.experiments.store.tables import WAITING, outcomes, units
from router.experiments.store.units import Unit

_OUTCOME = [
    outcomes.c[name] for name in ("key", "metric", "value", "time", "response_id", "experiment", "unit")
]


def waiting(
    session: Session,
    answering: Sequence[tuple[Exposure, Unit]],
    new: Sequence[Unit],
    elsewhere: Mapping[str, Sequence[int]],
) -> list[Placed]:
    """Those that now have a unit: of these responses, and of these new units."""
    return [*_of_responses(session, answering, elsewhere), *_of_units(session, answering, new)]


def _of_responses(
    session: Session, answering: Sequence[tuple[Exposure, Unit]], elsewhere: Mapping[str, Sequence[int]]
) -> Iterator[Placed]:
    by_response: dict[str, list[Unit]] = {}
    for e, unit in answering:
        by_response.setdefault(e.response_id, []).append(unit)
    here = session.bulk.among(outcomes.c.response_id, by_response)
    for said in _read(session, WAITING, here):
        yield Placed(said, by_response[said.response_id])
    if elsewhere:
        yield from _counted_elsewhere(session, by_response, elsewhere)


def _counted_elsewhere(
    session: Session, by_response: Mapping[str, list[Unit]], elsewhere: Mapping[str, Sequence[int]]
) -> Iterator[Placed]:
    """Outcomes that another experiment has of the same response already."""
    ids = {unit for response in elsewhere for unit in elsewhere[response]}
    query = select(units.c.unit, *_OUTCOME).join_from(outcomes, units, outcomes.c.unit_id == units.c.id)
    found: dict[str, tuple[Outcome, set[str]]] = {}
    for name, *rest in session.conn.execute(query.where(session.bulk.among(outcomes.c.unit_id, ids))):
        said = Outcome(*rest)
        if said.response_id in by_response:
            found.setdefault(said.key, (said, set()))[1].add(name)
    for said, names in found.values():
        yield Placed(said, by_response[said.response_id], frozenset(names))


def _of_units(
    session: Session, answering: Iterable[tuple[Exposure, Unit]], new: Iterable[Unit]
) -> Iterator[Placed]:
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
    for said in _read(session, WAITING, here):
        shown = [u for u in first.get((said.experiment, said.unit), ()) if said.time >= u.first]
        if shown:
            yield Placed(said, shown[:1], frozenset([said.unit]))


def _read(session: Session, *which: ColumnElement[bool]) -> Iterator[Outcome]:
    for row in session.conn.execute(select(*_OUTCOME).where(*which)).all():
        yield Outcome(*row)
