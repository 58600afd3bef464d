"""The table of shared documents in PostgreSQL, and the edges that are there.

Writers queue for the database's one right to write, so revisions become visible in their order and none is
missed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Connection,
    DateTime,
    Engine,
    MetaData,
    Table,
    Text,
    delete,
    func,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import insert

from router.errors import ConfigError, SharedDown, StoreDown
from router.shared.database import make_engine, parse_url, reading, translated, writing

T = TypeVar("T")
THERE_SECONDS = 5  # an edge that was silent for longer is not there
GONE_SECONDS = 3600  # and after so long its line goes
FORMAT = 1  # the document of revision 0

metadata = MetaData()
documents = Table(
    "lora_router_shared",
    metadata,
    Column("key", Text, primary_key=True),
    Column("revision", BigInteger, nullable=False, unique=True),
    Column("value", JSON, nullable=False),
    Column("edge", Text, nullable=False),  # whose change it was, for people
)
edges = Table(
    "lora_router_edges",
    metadata,
    Column("edge", Text, primary_key=True),
    Column("seen", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("used", JSON, nullable=False),
)
OF = documents.c
Totals: TypeAlias = Mapping[str, Sequence[float]]  # by holder of a quota; see `access.quotas.Quotas.used`


@dataclass(frozen=True, slots=True)
class SharedDocument:
    """A document as it is kept. Revisions are counted over all documents, so the highest is the last."""

    key: str
    revision: int
    value: Any  # as JSON has it


@dataclass(frozen=True, slots=True)
class Beat:
    """An edge that is there, and what clients have used at it since it started."""

    edge: str
    used: Totals


class SharedTable:
    """Used on one event loop; what blocks runs in threads. Everything raises SharedDown where the database
    does not answer, in seconds; after that `open` begins anew.
    """

    def __init__(self, url: str, edge: str) -> None:
        """Raises ConfigError for a URL that cannot work; nothing is connected yet."""
        self._url, self._edge = parse_url(url), edge
        if self._url.get_backend_name() != "postgresql":
            raise ConfigError("database must be a PostgreSQL database where edges share it (sharing.enabled)")
        self._engine: Engine | None = None

    async def open(self) -> None:
        """Connect, and make what is not there. Raises ConfigError for a database of another version."""
        await self.close()
        self._engine = make_engine(self._url)

        def make(conn: Connection) -> int:
            metadata.create_all(conn)
            first = {"key": "format", "revision": 0, "value": FORMAT, "edge": ""}
            conn.execute(insert(documents).values(first).on_conflict_do_nothing())
            return int(conn.execute(select(OF.value).where(OF.revision == 0)).scalar_one())

        if (version := await self._written(make)) != FORMAT:
            raise ConfigError(
                f"database has shared state of another version of lora-router (format {version}, this one "
                f"reads {FORMAT}): use the same version at all edges, or another database"
            )

    async def changed(self, revision: int) -> dict[str, SharedDocument] | None:
        """All documents by their keys; None where that revision is the highest."""

        def work(engine: Engine) -> dict[str, SharedDocument] | None:
            with reading(engine) as conn:
                if conn.execute(select(func.max(OF.revision))).scalar_one() == revision:
                    return None
                rows = conn.execute(select(OF.key, OF.revision, OF.value).where(OF.revision > 0))
                return {row.key: SharedDocument(*row) for row in rows}

        return await self._done(work)

    async def put(self, key: str, value: Any, expected: int) -> int | None:
        """Replace a document that has that revision (0: is not there).

        Returns the new one; None, and changes nothing, where it has another.
        """

        def change(conn: Connection) -> int | None:
            present = conn.execute(select(OF.revision).where(OF.key == key)).scalar_one_or_none() or 0
            return self._put(conn, key, value) if present == expected else None

        return await self._written(change)

    def _put(self, conn: Connection, key: str, value: Any) -> int:
        revision = int(conn.execute(select(func.max(OF.revision))).scalar_one()) + 1
        row = {"revision": revision, "value": value, "edge": self._edge}
        put = insert(documents).values(key=key, **row)
        conn.execute(put.on_conflict_do_update(index_elements=["key"], set_=row))
        return revision

    async def seed(self, values: Mapping[str, Any]) -> bool:
        """Put all of them, if there is no document yet."""

        def fill(conn: Connection) -> bool:
            if conn.execute(select(OF.key).where(OF.revision > 0).limit(1)).first() is not None:
                return False
            for key, value in values.items():
                self._put(conn, key, value)
            return True

        return await self._written(fill)

    async def beat(self, used: Totals) -> Sequence[Beat]:
        """Announce this edge; returns the others that are."""

        def work(engine: Engine) -> Sequence[Beat]:
            with engine.begin() as conn:
                own = insert(edges).values(edge=self._edge, used=used)
                now = {"seen": func.now(), "used": own.excluded.used}
                conn.execute(own.on_conflict_do_update(index_elements=["edge"], set_=now))
                there = edges.c.seen > func.now() - text(f"interval '{THERE_SECONDS} seconds'")
                others = select(edges.c.edge, edges.c.used).where(edges.c.edge != self._edge, there)
                return [Beat(*row) for row in conn.execute(others)]

        return await self._done(work)

    async def leave(self) -> None:
        """Announce that this edge goes, and close. Raises SharedDown."""
        gone = edges.c.seen < func.now() - text(f"interval '{GONE_SECONDS} seconds'")

        def work(engine: Engine) -> None:
            with engine.begin() as conn:
                conn.execute(delete(edges).where((edges.c.edge == self._edge) | gone))

        try:
            await self._done(work)
        finally:
            await self.close()

    async def close(self) -> None:
        """Close the connections."""
        engine, self._engine = self._engine, None
        if engine is not None:
            await asyncio.to_thread(engine.dispose)

    async def _written(self, change: Callable[[Connection], T]) -> T:
        """In a transaction of the one who may write; what it committed is on the database's disk."""

        def work(engine: Engine) -> T:
            with writing(engine) as conn:
                return change(conn)

        return await self._done(work)

    async def _done(self, work: Callable[[Engine], T]) -> T:
        if self._engine is None:
            raise SharedDown("not connected")
        try:
            with translated(self._url):
                return await asyncio.to_thread(work, self._engine)
        except StoreDown as error:
            raise SharedDown(error.message) from error
