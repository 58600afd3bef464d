"""Feedback in a database: SQLite in a file or PostgreSQL, one row for each answer.

Every call blocks, and raises StoreDown where the database cannot be reached, and ConfigError where it cannot
work at all. The database is opened, and the tables are made, at the first call. What was written is durable
when a call returns.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Double,
    Engine,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    Row,
    Table,
    Text,
    delete,
    func,
    insert,
    inspect,
    select,
    tuple_,
)

from router.errors import ConfigError, StoreDown
from router.feedback.model import VERDICTS, Feedback, Verdict
from router.shared import database
from router.shared.database import parse_url, shown_url, translated

FILE = "feedback.db"  # in the state folder
VERSION = 2
MOST_KEPT = 20_000  # answers with feedback of one adapter and tenant; beyond it the oldest go
CHUNK = 500  # rows read or removed in one transaction
Place = tuple[float, str, str]  # of a row in the order of reading: time, tenant, response id
PREFIX = "lora_router_feedback"  # a database may hold other programs' tables

metadata = MetaData()
version = Table(f"{PREFIX}_version", metadata, Column("version", Integer, primary_key=True))
feedback = Table(
    PREFIX,
    metadata,
    Column("tenant", Text, nullable=False),
    Column("response_id", Text, nullable=False),
    Column("time", Double, nullable=False),
    Column("unit", Text, nullable=False),
    Column("adapter", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("digest", Text, nullable=False),
    Column("verdict", Text, nullable=False),
    Column("should_have_been", Text, nullable=False),
    Column("texts", Text, nullable=False),  # JSON object; empty where there is none
    PrimaryKeyConstraint("tenant", "response_id"),
    Index(f"{PREFIX}_by_adapter", "adapter", "time", "tenant", "response_id"),
    Index(f"{PREFIX}_by_unit", "unit"),
    Index(f"{PREFIX}_by_time", "time"),
)
OF = feedback.c


@dataclass(frozen=True, slots=True)
class FeedbackCount:
    """So much feedback of one verdict on one version."""

    adapter: str
    version: str
    verdict: Verdict
    count: int


class FeedbackStore:
    """Any thread may call it. Several servers may have one database: all see the same.

    `most` bounds the rows of one adapter and tenant.
    """

    def __init__(self, url: str, most: int = MOST_KEPT) -> None:
        self._text, self._most = url, most
        self._opened: Engine | None = None
        self._opening, self._alone = threading.Lock(), threading.Lock()
        # Of a SQLite file, which an earlier process may have left: whether deleted texts can be in the file,
        # and in its write-ahead log.
        self._holes, self._log = True, True

    @classmethod
    def in_folder(cls, state: Path) -> FeedbackStore:
        """The default: a SQLite file in the state folder."""
        return cls(f"sqlite:///{state / FILE}")

    @property
    def exists(self) -> bool:
        """Whether there may be something to read: False for a SQLite file that nothing made yet."""
        path = self._text.removeprefix("sqlite:///")
        return path == self._text or Path(path).exists()

    def close(self) -> None:
        """Let connections go; the next call makes new ones."""
        with self._opening:
            if self._opened is not None:
                self._opened.dispose()
                self._opened = None

    # -- writing

    def put(self, one: Feedback, recalled: bool = True, texts: bool = True) -> tuple[Feedback, bool] | None:
        """Keep it in place of earlier feedback on the same answer; returns what is kept, and whether there
        was some.

        Unless the server `recalled` the answer, what the earlier feedback says of it counts. None: there is
        no earlier feedback, and `one` names no adapter, so that nothing was kept. With `texts`, request and
        answer stay as they were kept first where `one` has none.
        """
        with self._writing() as conn:
            key = (OF.tenant == one.tenant) & (OF.response_id == one.response_id)
            row = conn.execute(select(feedback).where(key)).one_or_none()
            if row is None and not recalled and not one.adapter:
                return None
            if row is not None:
                one = _completed(one, _feedback(row), recalled, texts)
                conn.execute(delete(feedback).where(key))
                self._holes = True
            conn.execute(insert(feedback).values(_values(one)))
        return one, row is not None

    def delete(self, unit: str = "", tenant: str | None = None) -> int:
        """Delete what a unit (its hash) sent, what a tenant sent, or both; returns how many rows went."""
        if not unit and tenant is None:
            raise ValueError("name a unit or a tenant")
        which = [OF.unit == unit] if unit else []
        if tenant is not None:
            which.append(OF.tenant == tenant)
        return self._remove(*which)

    def expire(self, before: float) -> int:
        """Delete what came before that time (unix seconds); returns how many rows went."""
        return self._remove(OF.time < before)

    def trim(self) -> int:
        """Delete the oldest rows of each adapter and tenant beyond `most`; returns how many went."""
        if not self.exists:
            return 0
        with self._reading() as conn:
            counted = select(OF.adapter, OF.tenant).group_by(OF.adapter, OF.tenant)
            full = conn.execute(counted.having(func.count() > self._most)).all()
        gone = 0
        for row in full:
            here = (OF.adapter == row.adapter) & (OF.tenant == row.tenant)
            newest = select(OF.time).where(here).order_by(OF.time.desc()).offset(self._most - 1).limit(1)
            with self._reading() as conn:
                oldest = conn.execute(newest).scalar_one()
            gone += self._remove(here, OF.time < oldest)
        return gone

    def _remove(self, *which: ColumnElement[bool]) -> int:
        """Some at a time, so that no writer waits long."""
        gone, key = 0, (OF.tenant, OF.response_id)
        while self.exists:
            with self._writing() as conn:
                keys = conn.execute(select(*key).where(*which).limit(CHUNK)).all()
                conn.execute(delete(feedback).where(tuple_(*key).in_(keys)))
            gone += len(keys)
            self._holes = self._holes or bool(keys)
            if len(keys) < CHUNK:
                break
        return gone

    def erase(self) -> bool:
        """Take the bytes of deleted and replaced rows off the disk, where the database is a SQLite file.

        Nobody writes meanwhile: about 5 s of processor time for each GB of feedback. False: another program
        reads the file, and keeps its write-ahead log from being emptied; call it again later.
        """
        if not self.exists or not (self._holes or self._log):
            return True
        engine = self._engine()
        with self._one_writer(engine), translated(engine.url):
            if self._holes:
                self._log = True
                database.rebuild(engine)
                self._holes = False
            self._log = not database.empty_log(engine)
        return not self._log

    # -- reading

    def read(self, adapter: str, since: float = 0, tenant: str | None = None) -> Iterator[Feedback]:
        """All feedback on answers of an adapter that came at `since` or later, the oldest first. `tenant`
        None is all tenants. Rows are read some at a time, so feedback that comes meanwhile is read, too."""
        after: Place | None = None
        while rows := self.page(adapter, since, CHUNK, after, tenant):
            yield from rows
            after = place_of(rows[-1])

    def page(
        self, adapter: str, since: float, most: int, after: Place | None = None, tenant: str | None = None
    ) -> Sequence[Feedback]:
        """At most so many rows, in the order of `read`, after a place."""
        if not self.exists:
            return ()
        query = select(feedback).where(OF.adapter == adapter, OF.time >= since)
        if tenant is not None:
            query = query.where(OF.tenant == tenant)
        if after is not None:
            query = query.where(tuple_(OF.time, OF.tenant, OF.response_id) > tuple_(*after))
        with self._reading() as conn:
            rows = conn.execute(query.order_by(OF.time, OF.tenant, OF.response_id).limit(most)).all()
        return [_feedback(row) for row in rows]

    def counts(
        self, since: float = 0, adapter: str = "", tenant: str | None = None
    ) -> Sequence[FeedbackCount]:
        """How much feedback came after `since`, by adapter, version and verdict; of all adapters where none
        is named."""
        if not self.exists:
            return ()
        of = (OF.adapter, OF.version, OF.verdict)
        query = select(*of, func.count().label("count")).where(OF.time > since).group_by(*of)
        if adapter:
            query = query.where(OF.adapter == adapter)
        if tenant is not None:
            query = query.where(OF.tenant == tenant)
        with self._reading() as conn:
            return [FeedbackCount(*row) for row in conn.execute(query).all()]

    def on(self, answers: Sequence[tuple[str, str]]) -> Sequence[Feedback]:
        """Feedback on these answers: of each its tenant and response id."""
        if not self.exists:
            return ()
        with self._reading() as conn:
            query = select(feedback).where(tuple_(OF.tenant, OF.response_id).in_(answers))
            return [_feedback(row) for row in conn.execute(query).all()]

    # -- the database

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        engine = self._engine()
        with self._one_writer(engine), translated(engine.url), database.writing(engine) as conn:
            yield conn

    @contextmanager
    def _one_writer(self, engine: Engine) -> Iterator[None]:
        if not self._alone.acquire(timeout=2 * database.WAIT_SECONDS):
            raise StoreDown(f"the store {shown_url(engine.url)}: other writers take too long")
        try:
            yield
        finally:
            self._alone.release()

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        engine = self._engine()
        with translated(engine.url), database.reading(engine) as conn:
            yield conn

    def _engine(self) -> Engine:
        with self._opening:
            if self._opened is None:
                self._opened = self._open()
            return self._opened

    def _open(self) -> Engine:
        url = parse_url(self._text)
        if url.get_backend_name() == "sqlite":
            _make_private(Path(url.database or ""))
        engine = database.make_engine(url)
        try:
            with translated(url), database.writing(engine) as conn:
                _migrate(conn)
        except BaseException:
            engine.dispose()
            raise
        return engine


def _make_private(path: Path) -> None:
    """A new file is readable by its owner alone; SQLite gives its other files the same mode."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as error:
        raise StoreDown(f"{path} cannot be opened: {error.strerror}") from error


def _migrate(conn: Connection) -> None:
    """Make the tables. Raises ConfigError if they are another version's."""
    if not inspect(conn).has_table(version.name):
        metadata.create_all(conn)
        conn.execute(insert(version).values(version=VERSION))
        return
    there = conn.execute(select(version.c.version)).scalar_one()
    if there != VERSION:
        raise ConfigError(
            f"the tables of feedback have version {there}, this program knows {VERSION}: they were written "
            "by another lora-router; use that one, or name another database"
        )


def place_of(one: Feedback) -> Place:
    """Where it stands in the order of reading."""
    return one.time, one.tenant, one.response_id


def _completed(one: Feedback, earlier: Feedback, recalled: bool, texts: bool) -> Feedback:
    """With what only the earlier feedback knows of the answer."""
    if not recalled:
        of_answer = ("unit", "adapter", "version", "digest")
        one = replace(one, **{name: getattr(earlier, name) for name in of_answer})
    if not texts:
        return one
    if earlier.messages and not (recalled and one.messages):
        one = replace(one, messages=earlier.messages)
    if earlier.answer is not None and not (recalled and one.answer is not None):
        one = replace(one, answer=earlier.answer)
    return one


def _values(one: Feedback) -> dict[str, Any]:
    texts: Mapping[str, Any] = {
        "messages": one.messages,
        "answer": one.answer,
        "corrected": one.corrected,
        "comment": one.comment,
    }
    columns = [column.name for column in OF if column.name != "texts"]
    # ASCII: PostgreSQL has no NUL, and JSON writes it as an escape.
    return {name: getattr(one, name) for name in columns} | {
        "texts": json.dumps(texts) if one.has_texts else ""
    }


def _feedback(row: Row[Any]) -> Feedback:
    texts = json.loads(row.texts) if row.texts else {}
    return Feedback(
        row.response_id,
        row.time,
        row.tenant,
        row.unit,
        row.adapter,
        row.version,
        VERDICTS[VERDICTS.index(row.verdict)],
        tuple((role, text) for role, text in texts.get("messages", ())),
        texts.get("answer"),
        texts.get("corrected"),
        texts.get("comment", ""),
        row.digest,
        row.should_have_been,
    )
