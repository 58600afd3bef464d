"""What classifiers keep beyond the process: vectors of texts, in one SQLite file, and the result of a fit.

Both are caches: what cannot be read is made again, and what cannot be written is not kept. Nothing read from
them is executed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

log = logging.getLogger(__name__)
Array = np.ndarray[Any, Any]
WAIT_SECONDS = 2.0  # for another process that writes
AT_ONCE = 500  # keys of one query
MOST_BYTES = 256 << 20  # of the arrays of a fit
HEAD = 64  # bytes before them: key and digest
SPARE = 1000  # sets of vectors that are not in use and may stay: versions that are rolled back to
_TABLE = (
    "CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, size INTEGER NOT NULL, rows BLOB NOT NULL)"
)
_FIND = "SELECT key, size, rows FROM vectors WHERE key IN ({})"
_OLDER = "DELETE FROM vectors WHERE rowid NOT IN (SELECT rowid FROM vectors ORDER BY rowid DESC LIMIT ?)"
T = TypeVar("T")


class VectorCache:
    """Sets of vectors, one for each sequence of texts. `maker` names encoder and version: others' are not
    found. Of any thread."""

    def __init__(self, path: Path, maker: str) -> None:
        self._path, self._maker = path, maker

    def key(self, texts: Sequence[str]) -> bytes:
        """Of a sequence of texts."""
        text = json.dumps([self._maker, *texts]).encode()
        return hashlib.sha256(text).digest()

    def find(self, keys: Collection[bytes]) -> dict[bytes, Array]:
        """[texts, size] float32 of those that are there."""

        def work(database: sqlite3.Connection) -> dict[bytes, Array]:
            found: dict[bytes, Array] = {}
            for part in in_parts(keys, AT_ONCE):
                places = ",".join("?" * len(part))
                for key, size, rows in database.execute(_FIND.format(places), part):
                    if (vectors := unpack(rows, size)) is not None:
                        found[key] = vectors
            return found

        return self._with(work, {})

    def add(self, made: Mapping[bytes, Array], most: int | None = None) -> None:
        """Keep these; where there are more than `most` then, the older half goes."""

        def work(database: sqlite3.Connection) -> None:
            rows = [(key, vectors.shape[1], pack(vectors)) for key, vectors in made.items()]
            database.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?, ?)", rows)
            if most is not None and database.execute("SELECT count(*) FROM vectors").fetchone()[0] > most:
                database.execute(_OLDER, (most // 2,))

        self._with(work, None)

    def only(self, keys: Iterable[bytes]) -> None:
        """Let go of what is not among these, where that is much."""
        wanted = set(keys)

        def work(database: sqlite3.Connection) -> None:
            unused = [row for row in database.execute("SELECT key FROM vectors") if row[0] not in wanted]
            if len(unused) > SPARE:
                database.executemany("DELETE FROM vectors WHERE key = ?", unused)

        self._with(work, None)

    def _with(self, work: Callable[[sqlite3.Connection], T], otherwise: T) -> T:
        """What `work` makes of the database, in one transaction; `otherwise` where it cannot be used, which
        is said in the log."""
        try:
            with closing(sqlite3.connect(self._path, timeout=WAIT_SECONDS)) as database:
                database.execute("PRAGMA synchronous = OFF")  # nothing is lost that could not be made again
                database.execute(_TABLE)
                with database:
                    return work(database)
        except sqlite3.OperationalError as error:  # locked, full, read-only, no such folder
            log.warning("vectors are not kept at %s: %s", self._path, error)
        except sqlite3.DatabaseError as error:
            log.warning("%s is damaged and begun anew: %s", self._path, error)
            self._path.unlink(missing_ok=True)
        return otherwise


class FitCache:
    """The arrays of a fit, in one file, for the same training set only. For any thread.

    The file is the key, the sha256 of the rest, and the rest in the format of safetensors.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def find(self, key: bytes) -> dict[str, Array] | None:
        """The arrays that were put under this key of 32 bytes; None if others were, or if none were."""
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            with self._path.open("rb") as file:
                if file.read(len(key)) != key and os.fstat(file.fileno()).st_size > HEAD:
                    return None
                digest, body = file.read(HEAD - len(key)), file.read(MOST_BYTES + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("%s cannot be read: %s", self._path, error)
            return None
        try:
            if hashlib.sha256(body).digest() == digest and len(body) <= MOST_BYTES:
                return load(body)
        except SafetensorError:
            pass  # the same line as for any other damage
        log.warning("%s is damaged and is made anew", self._path)
        return None

    def put(self, key: bytes, arrays: Mapping[str, Array]) -> None:
        """Keep these in place of what was there."""
        from safetensors.numpy import save

        body = save({name: np.ascontiguousarray(rows) for name, rows in arrays.items()})
        beside = self._path.with_name(f"{self._path.name}.part")  # one that a crash left is overwritten
        try:
            if len(body) > MOST_BYTES:
                raise OSError(f"it has {len(body)} bytes, more than {MOST_BYTES}")
            beside.write_bytes(key + hashlib.sha256(body).digest() + body)
            os.replace(beside, self._path)
        except OSError as error:
            log.warning("what was learned is not kept at %s: %s", self._path, error)
            with suppress(OSError):
                beside.unlink(missing_ok=True)


def in_parts(items: Iterable[T], most: int) -> Iterator[tuple[T, ...]]:
    """So many of them at a time."""
    rest = iter(items)
    while part := tuple(islice(rest, most)):
        yield part


def pack(vectors: Array) -> bytes:
    """Half precision: four digits. What is too large for it is not found again."""
    with np.errstate(over="ignore"):
        return vectors.astype(np.float16).tobytes()


def unpack(rows: bytes, size: int) -> Array | None:
    """[n, size] float32; None if it is nothing that `pack` made."""
    if size <= 0 or not rows or len(rows) % (2 * size):
        return None
    found: Array = np.frombuffer(rows, np.float16).reshape(-1, size).astype(np.float32)
    return found if np.isfinite(found).all() else None
