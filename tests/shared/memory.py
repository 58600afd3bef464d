"""A database of what edges share, in memory: what `SharedTable` does, without PostgreSQL."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from router.errors import SharedDown
from router.shared.documents import Beat, SharedDocument, SharedTable, Totals


class MemoryDatabase:
    """One for all tables. While it is `down`, nothing answers."""

    def __init__(self) -> None:
        self.rows: dict[str, SharedDocument] = {}
        self.beats: dict[str, Totals] = {}
        self.down = False

    @property
    def last(self) -> int:
        return max((row.revision for row in self.rows.values()), default=0)


class MemoryTable(SharedTable):
    """One edge's."""

    def __init__(self, database: MemoryDatabase, edge: str) -> None:
        self._of, self._edge = database, edge
        self.is_open = False

    def _check(self) -> None:
        if self._of.down or not self.is_open:
            self.is_open = False
            raise SharedDown("the database is away")

    async def open(self) -> None:
        self.is_open = True
        self._check()

    async def changed(self, revision: int) -> dict[str, SharedDocument] | None:
        self._check()
        return None if self._of.last == revision else dict(self._of.rows)

    async def put(self, key: str, value: Any, expected: int) -> int | None:
        self._check()
        present = self._of.rows.get(key)
        if (0 if present is None else present.revision) != expected:
            return None
        return self._put(key, value)

    def _put(self, key: str, value: Any) -> int:
        revision = self._of.last + 1
        self._of.rows[key] = SharedDocument(key, revision, json.loads(json.dumps(value)))
        return revision

    async def seed(self, values: Mapping[str, Any]) -> bool:
        self._check()
        if self._of.rows:
            return False
        for key, value in values.items():
            self._put(key, value)
        return True

    async def beat(self, used: Totals) -> Sequence[Beat]:
        self._check()
        self._of.beats[self._edge] = json.loads(json.dumps(used))
        return [Beat(edge, told) for edge, told in self._of.beats.items() if edge != self._edge]

    async def leave(self) -> None:
        self._of.beats.pop(self._edge, None)
        await self.close()

    async def close(self) -> None:
        self.is_open = False
