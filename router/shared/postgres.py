"""The table of shared documents in PostgreSQL, through psycopg.

Writers queue for one advisory lock, so revisions become visible in their order and none is missed. Who writes
notifies a channel; who missed that looks again after a second.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import urlsplit, urlunsplit

from router.errors import ConfigError, SharedDown, install_extra

if TYPE_CHECKING:
    import psycopg

log = logging.getLogger(__name__)
SCHEMES = ("postgresql", "postgres", "postgresql+psycopg")
EXAMPLE = "postgresql://user:password@host/database"
CONNECT_SECONDS, ANSWER_SECONDS = 3.0, 3.0
THERE_SECONDS = 5  # an edge that was silent for longer is not there
GONE_SECONDS = 3600  # and after so long its line goes
FORMAT = 1  # the document of revision 0
LOCK = 0x6C6F7261_73686172  # an advisory lock: who writes
CHANNEL = "lora_router_shared"
TABLES = (
    "CREATE TABLE IF NOT EXISTS lora_router_shared (key text PRIMARY KEY, revision bigint NOT NULL UNIQUE, "
    "value json NOT NULL, edge text NOT NULL, changed timestamptz NOT NULL DEFAULT now())",
    "CREATE TABLE IF NOT EXISTS lora_router_edges (edge text PRIMARY KEY, "
    "seen timestamptz NOT NULL DEFAULT now(), used json NOT NULL)",
    "INSERT INTO lora_router_shared (key, revision, value, edge) VALUES ('format', 0, '1', '') "
    "ON CONFLICT DO NOTHING",
)


Totals: TypeAlias = Mapping[str, Sequence[float]]  # by holder of a quota; see `access.quotas.Quotas.used`


@dataclass(frozen=True, slots=True)
class SharedDocument:
    """A document as it is kept. Revisions are counted over all documents, so the highest is the last."""

    key: str
    revision: int
    value: Any  # as JSON has it
    edge: str  # whose change it was


@dataclass(frozen=True, slots=True)
class Beat:
    """An edge that is there, and what clients have used at it since it started."""

    edge: str
    used: Totals


def with_patience(
    steps: Generator[Any, Any, Any], seconds: float, leave: Callable[[], Exception]
) -> Generator[Any, Any, Any]:
    """The same steps of the driver, which would wait without end for a server that sends nothing.

    Raises what `leave` returns after `seconds` of silence.
    """
    last = time.monotonic()
    try:
        wanted = next(steps)
        while True:
            ready = yield wanted  # nothing, every tenth of a second while the server is silent
            now = time.monotonic()
            if not ready and now - last > seconds:
                raise leave()
            last = now if ready else last
            wanted = steps.send(ready)
    except StopIteration as done:
        return done.value


def parse_url(text: str) -> str:
    """As the driver takes it. Raises ConfigError, which shows no password."""
    parts = urlsplit(text)
    if parts.scheme not in SCHEMES:
        raise ConfigError(
            f"database begins with {parts.scheme!r}: edges share a PostgreSQL database, {EXAMPLE}"
        )
    if find_spec("psycopg") is None:
        raise ConfigError(f"database needs the Python package psycopg: {install_extra('postgres')}")
    if not parts.path.strip("/"):
        raise ConfigError(f"database names none: write {EXAMPLE}")
    import psycopg.conninfo

    url = urlunsplit(parts._replace(scheme="postgresql"))
    try:
        psycopg.conninfo.conninfo_to_dict(url)
    except psycopg.ProgrammingError:  # whose text may have a piece of the password
        raise ConfigError(
            f"database cannot be read: write {EXAMPLE}, special characters as %XX, and no parameters but "
            "those of PostgreSQL"
        ) from None
    return url


def fetch(url: str, key: str) -> Any:
    """A document, for who is not running yet; None if there is none. Blocks, for seconds at most.

    Raises ConfigError, SharedDown.
    """
    import psycopg

    with _translated():
        connection = psycopg.connect(parse_url(url), connect_timeout=int(CONNECT_SECONDS))
        with connection, connection.cursor() as cursor:
            cursor.execute("SELECT to_regclass('lora_router_shared') IS NOT NULL")
            if cursor.fetchone() != (True,):
                return None
            found = cursor.execute("SELECT value FROM lora_router_shared WHERE key = %s", [key]).fetchone()
            return None if found is None else found[0]


class PostgresTable:
    """Used on one event loop. Everything raises SharedDown where the database does not answer, in seconds;
    after that `open` begins anew.
    """

    def __init__(self, url: str, edge: str) -> None:
        """Raises ConfigError for a URL that cannot work; nothing is connected yet."""
        self._url, self._edge = parse_url(url), edge
        self._conn: psycopg.AsyncConnection[Any] | None = None
        self._listener: psycopg.AsyncConnection[Any] | None = None  # is notified of changes
        self._lock = asyncio.Lock()  # one transaction at a time

    async def open(self) -> None:
        """Connect, and make what is not there. Raises ConfigError for a database of a newer version."""
        await self.close()
        with _translated():
            self._conn = await self._connected("work")
            self._listener = await self._connected("listener")
            async with self._writing() as conn:
                for statement in TABLES:
                    await conn.execute(statement)
                found = await conn.execute("SELECT value FROM lora_router_shared WHERE revision = 0")
                (version,) = await found.fetchone() or (0,)
            await self._listener.execute(f"LISTEN {CHANNEL}")
        if version != FORMAT:
            raise ConfigError(
                f"database has shared state of another version of lora-router (format {version}, this one "
                f"reads {FORMAT}): use the same version at all edges, or another database"
            )

    async def _connected(self, purpose: str) -> psycopg.AsyncConnection[Any]:
        import psycopg

        class TimedConnection(psycopg.AsyncConnection[Any]):
            async def wait(self, gen: Any, *arguments: Any, **named: Any) -> Any:
                return await super().wait(
                    with_patience(gen, ANSWER_SECONDS, self._leave), *arguments, **named
                )

            def _leave(self) -> Exception:
                self.pgconn.finish()
                return psycopg.OperationalError(f"no answer within {ANSWER_SECONDS:g} s")

        return await TimedConnection.connect(
            self._url,
            autocommit=True,
            connect_timeout=int(CONNECT_SECONDS),
            application_name=f"lora-router {purpose} {self._edge}"[:63],
            prepare_threshold=None,
        )

    @asynccontextmanager
    async def _using(self) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        if self._conn is None:
            raise SharedDown("not connected")
        with _translated():
            async with self._lock:
                yield self._conn

    @asynccontextmanager
    async def _writing(self) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        """A transaction of the one who may write; what it committed is on the database's disk."""
        async with self._using() as conn, conn.transaction():
            await conn.execute(f"SET LOCAL lock_timeout = {int(ANSWER_SECONDS * 1000) - 500}")
            await conn.execute(
                "SELECT set_config('synchronous_commit', 'on', true) "
                "WHERE current_setting('synchronous_commit') = 'off'"
            )
            await conn.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK])
            yield conn

    async def since(self, revision: int) -> tuple[Sequence[SharedDocument], int]:
        """What has changed after that revision, in order, and the highest revision there is (0: none)."""
        async with self._using() as conn, conn.transaction():
            await conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            found = await conn.execute("SELECT max(revision) FROM lora_router_shared")
            (last,) = await found.fetchone() or (0,)
            rows: list[Any] = []
            if last != revision:
                text = "SELECT key, revision, value, edge FROM lora_router_shared WHERE revision > %s"
                rows = await (await conn.execute(f"{text} ORDER BY revision", [revision])).fetchall()
        return [SharedDocument(*row) for row in rows], last or 0

    async def put(self, key: str, value: Any, expected: int) -> int | None:
        """Replace a document that has that revision (0: is not there).

        Returns the new one; None, and changes nothing, where it has another.
        """
        async with self._writing() as conn:
            found = await conn.execute("SELECT revision FROM lora_router_shared WHERE key = %s", [key])
            (present,) = await found.fetchone() or (0,)
            return None if present != expected else await self._put(conn, key, value)

    async def _put(self, conn: psycopg.AsyncConnection[Any], key: str, value: Any) -> int:
        found = await conn.execute(
            "INSERT INTO lora_router_shared (key, revision, value, edge) "
            "VALUES (%s, (SELECT max(revision) + 1 FROM lora_router_shared), %s, %s) ON CONFLICT (key) DO "
            "UPDATE SET revision = excluded.revision, value = excluded.value, edge = excluded.edge, "
            "changed = now() RETURNING revision",
            [key, json.dumps(value), self._edge],
        )
        (revision,) = await found.fetchone() or (0,)
        await conn.execute(f"NOTIFY {CHANNEL}")
        return int(revision)

    async def seed(self, prefix: str, values: Mapping[str, Any]) -> bool:
        """Put all of them, if there is no document yet whose key begins so."""
        async with self._writing() as conn:
            found = await conn.execute(
                "SELECT 1 FROM lora_router_shared WHERE starts_with(key, %s)", [prefix]
            )
            if await found.fetchone() is not None:
                return False
            for key, value in values.items():
                await self._put(conn, key, value)
            return True

    async def beat(self, used: Totals) -> Sequence[Beat]:
        """Announce this edge; returns the others that are."""
        async with self._using() as conn:
            await conn.execute(
                "INSERT INTO lora_router_edges (edge, used) VALUES (%s, %s) "
                "ON CONFLICT (edge) DO UPDATE SET seen = now(), used = excluded.used",
                [self._edge, json.dumps(used)],
            )
            found = await conn.execute(
                "SELECT edge, used FROM lora_router_edges "
                "WHERE edge <> %s AND seen > now() - make_interval(secs => %s)",
                [self._edge, THERE_SECONDS],
            )
            return [Beat(*row) for row in await found.fetchall()]

    async def wait(self, seconds: float) -> None:
        """Return when some edge has changed something, or after `seconds`."""
        if self._listener is None:
            raise SharedDown("not connected")
        with _translated():
            async with aclosing(self._listener.notifies(timeout=seconds, stop_after=1)) as notified:
                async for _ in notified:
                    return

    async def leave(self) -> None:
        """Announce that this edge goes, where the database answers, and close."""
        try:
            async with self._using() as conn:
                await conn.execute(
                    "DELETE FROM lora_router_edges WHERE edge = %s "
                    "OR seen < now() - make_interval(secs => %s)",
                    [self._edge, GONE_SECONDS],
                )
        except SharedDown as error:
            log.info("the other edges notice by themselves that this one goes: %s", error.message)
        finally:
            await self.close()

    async def close(self) -> None:
        """Close the connections."""
        for conn in (self._conn, self._listener):
            if conn is not None:
                await conn.close()
        self._conn = self._listener = None


@contextmanager
def _translated() -> Iterator[None]:
    """The driver's errors as SharedDown. A mistake in a statement is a defect, and stays what it is."""
    import psycopg

    rights = (
        psycopg.errors.InsufficientPrivilege,
        psycopg.errors.InvalidSchemaName,
        psycopg.errors.UndefinedTable,  # somebody took it away: it is made again
    )
    try:
        yield
    except rights as error:
        raise SharedDown(f"{_line(error)}; grant the user CREATE and USAGE on the schema") from error
    except psycopg.ProgrammingError:
        raise
    except psycopg.Error as error:
        raise SharedDown(_line(error)) from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
