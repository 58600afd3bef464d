"""Phases by name and by id, with what their specs ask to be summed up."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, select

from router.experiments.store.bulk import Bulk
from router.experiments.store.documents import from_json
from router.experiments.store.series import PhaseInfo, info_of
from router.experiments.store.tables import experiments, phases

_LIVING = experiments.c.name.is_not(None)


class Phases:
    """Answers from memory what cannot change: a phase has one spec, and an id is never used again."""

    def __init__(self, bulk: Bulk) -> None:
        self._bulk = bulk
        self._infos: dict[int, PhaseInfo] = {}

    def named(self, conn: Connection, names: Collection[str]) -> dict[tuple[str, int], PhaseInfo]:
        """(experiment, number) -> phase, of these experiments."""
        rows = self._living(conn, self._bulk.among(experiments.c.name, names))
        infos = self._read(conn, [row.id for row in rows])
        return {(row.name, row.number): infos[row.id] for row in rows}

    def by_id(self, conn: Connection, ids: Collection[int]) -> dict[int, PhaseInfo]:
        """Those of these that were not deleted."""
        return self._read(conn, [row.id for row in self._living(conn, self._bulk.among(phases.c.id, ids))])

    def with_past(self, conn: Connection) -> list[PhaseInfo]:
        """Those that read what was before them."""
        rows = self._living(conn, phases.c.covariates != "[]")
        return list(self._read(conn, [row.id for row in rows]).values())

    def _living(self, conn: Connection, which: ColumnElement[bool]) -> Sequence[Any]:
        found = select(phases.c.id, experiments.c.name, phases.c.number)
        return conn.execute(found.join_from(phases, experiments).where(which, _LIVING)).all()

    def _read(self, conn: Connection, ids: Collection[int]) -> dict[int, PhaseInfo]:
        if unread := [key for key in ids if key not in self._infos]:
            found = select(phases.c.id, phases.c.number, experiments.c.document, experiments.c.etag)
            here = self._bulk.among(phases.c.id, unread)
            for key, number, document, etag in conn.execute(found.join_from(phases, experiments).where(here)):
                experiment = from_json(document, etag)
                self._infos[key] = info_of(key, next(p for p in experiment.phases if p.number == number))
        return {key: self._infos[key] for key in ids}
