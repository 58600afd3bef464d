"""What was administered and what was refused: a line of JSON each, chained by hashes.

Each line has the hash of the line before, and its own, sha256 over all the rest of it: to change, add or take
out a line breaks the chain there. A tail that was cut off shows only by a hash that was kept elsewhere.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from router.errors import ConfigError
from router.reread import problem_of

log = logging.getLogger(__name__)
START = "0" * 64  # the hash before the first line
MAX_FIELD = 256  # characters
REFUSALS_PER_SECOND = 50  # lines; of more, the number
TAIL_BYTES = 1 << 16
ANOTHER = "another server writes it; give each server an audit file of its own"


@dataclass(frozen=True, slots=True)
class AuditedCall:
    """What is kept of one call."""

    request_id: str
    client: str
    peer: str  # where it came from
    method: str
    resource: str  # what it was about, as the caller named it
    code: str
    reason: str = ""


class Sparse:
    """Lets so many lines a second through and counts the others: a flood must not become one of lines."""

    def __init__(self, most: int, now: Callable[[], float] = time.monotonic) -> None:
        self._most, self._now = most, now
        self._second, self._in_second, self.left = 0, 0, 0

    def next(self) -> bool:
        """Whether the line at hand is to be written."""
        second = int(self._now())
        if second != self._second:
            self._second, self._in_second = second, 0
        self._in_second += 1
        written = self._in_second <= self._most
        self.left += not written
        return written

    def left_out(self) -> int:
        """Lines that were not written since this was asked last."""
        number, self.left = self.left, 0
        return number


class Audit:
    """Appends to a file from a thread of its own. A file that is moved away is begun anew, and goes on in the
    same chain. The file is locked until `close`, since two writers would break the chain.

    Raises ConfigError where the file cannot be written, and where another server writes it.
    """

    def __init__(self, path: Path, now: Callable[[], float] = time.time) -> None:
        self._path, self._now = path, now
        self._locked = -1  # the descriptor of the file that is locked
        try:
            self._hold(self._opened())
            self._hash = last_hash(path)
        except OSError as error:
            raise ConfigError(f"the audit file {path} cannot be written: {error.strerror}") from None
        self.failed = 0  # lines that could not be written
        self._refusals = Sparse(REFUSALS_PER_SECOND, now)
        self._waiting: queue.SimpleQueue[tuple[Mapping[str, Any], Future[None]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write_all, name="audit", daemon=True)
        self._thread.start()

    def acted(self, act: AuditedCall) -> Future[None]:
        """Done when the line is on the disk, or could not be written, which is logged and counted."""
        return self._put(asdict(act))

    def refused(self, act: AuditedCall) -> None:
        """Note a refusal. Of more than 50 a second the number alone is kept, in the next line."""
        if self._refusals.next():
            self._put(asdict(act))

    def close(self) -> None:
        """Write what is left, and unlock the file."""
        if self._refusals.left:
            self._put({})
        self._waiting.put(None)
        self._thread.join()
        if self._locked >= 0:
            os.close(self._locked)
            self._locked = -1

    def _put(self, fields: dict[str, Any]) -> Future[None]:
        clipped: dict[str, Any] = {key: str(value)[:MAX_FIELD] for key, value in fields.items() if value}
        if left_out := self._refusals.left_out():
            clipped["left_out"] = left_out
        when = datetime.fromtimestamp(self._now(), UTC).isoformat(timespec="milliseconds")
        written: Future[None] = Future()
        self._waiting.put(({"time": when, **clipped}, written))
        return written

    def _write_all(self) -> None:
        while (first := self._waiting.get()) is not None:
            batch, ended = [first], False
            while not self._waiting.empty():
                if (more := self._waiting.get()) is None:
                    ended = True
                    break
                batch.append(more)
            self._write([fields for fields, _ in batch])
            for _, written in batch:
                if written.set_running_or_notify_cancel():  # else nobody waits for it any more
                    written.set_result(None)
            if ended:
                return

    def _write(self, batch: Iterable[Mapping[str, Any]]) -> None:
        lines, last = [], self._hash
        for fields in batch:
            line, last = chained(fields, last)
            lines.append(line)
        try:
            self._append(("\n".join(lines) + "\n").encode())
        except Exception as error:  # the thread goes on, and so does every call that waits for its line
            self.failed += len(lines)
            fields = {"file": str(self._path), "lines": len(lines), "problem": problem_of(error)}
            log.error("the audit file cannot be written", extra={"fields": fields})
        else:
            self._hash = last

    def _append(self, data: bytes) -> None:
        if not self._in_place():
            self._hold(self._opened())
        handle = os.dup(self._locked)
        with os.fdopen(handle, "r+b", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            torn = False
            if size and data:
                file.seek(size - 1)
                torn = file.read(1) != b"\n"  # a crash, or a full disk, in the middle of a line
            try:
                left = memoryview(b"\n" + data if torn else data)
                while left:
                    left = left[file.write(left) :]  # a disk that is almost full takes a part, without a word
                os.fsync(handle)
            except OSError:
                with suppress(OSError):  # what is not acknowledged is no part of the chain
                    file.truncate(size)
                raise

    def _in_place(self) -> bool:
        """Whether the locked file is still at the path."""
        try:
            return os.path.samestat(os.fstat(self._locked), os.stat(self._path))
        except FileNotFoundError:
            return False

    def _opened(self) -> int:
        return os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def _hold(self, handle: int) -> None:
        """Lock that file, instead of the one before. Raises OSError."""
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(handle)
            raise OSError(error.errno, ANOTHER) from None
        except OSError:
            os.close(handle)
            raise
        if self._locked >= 0:
            os.close(self._locked)
        self._locked = handle


def chained(fields: Mapping[str, Any], before: str) -> tuple[str, str]:
    """The line with both hashes, and its hash."""
    whole = {**fields, "previous": before}
    own = _hash(whole)
    return json.dumps({**whole, "hash": own}, sort_keys=True), own


def _hash(fields: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def last_hash(path: Path) -> str:
    """Of the last whole line; of none, the hash before the first. Raises OSError."""
    if not path.exists():
        return START
    with path.open("rb") as file:
        file.seek(max(file.seek(0, os.SEEK_END) - TAIL_BYTES, 0))
        lines = file.read().splitlines()
    for line in reversed(lines):
        if (fields := _parsed(line)) is not None:
            return str(fields["hash"])
    return START


def _parsed(line: bytes) -> dict[str, Any] | None:
    """A line's fields, if it is what its own hash says."""
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict) or not isinstance(fields.get("previous"), str):
        return None
    own = fields.get("hash")
    rest = {key: value for key, value in fields.items() if key != "hash"}
    return fields if isinstance(own, str) and own == _hash(rest) else None


@dataclass(frozen=True, slots=True)
class Verified:
    """What a file's chain is worth: `problems` by line, the hash before the first line and the last one's.

    `time` is what the last whole line has as its time. `has`: a line has the hash that was looked for.
    """

    lines: int
    problems: tuple[str, ...]
    first: str
    last: str
    time: str = ""
    has: bool = False


MOST_PROBLEMS = 20


def verify(path: Path, looked_for: str = "") -> Verified:
    """Read all of a file and follow the chain; `looked_for` is the hash of a line. Raises OSError."""
    problems: list[str] = []
    count, first, last, when, has = 0, START, "", "", False
    with path.open("rb") as file:
        for count, line in enumerate(file, 1):
            fields = _parsed(line)
            if fields is None:
                problems.append(f"line {count} was changed, or is not whole")
                continue
            if not last:
                first = fields["previous"]
            elif fields["previous"] != last:
                problems.append(f"line {count} does not follow the one before")
            last, when = fields["hash"], str(fields.get("time", ""))
            has = has or last == looked_for
    return Verified(count, tuple(problems[:MOST_PROBLEMS]), first, last or START, when, has)
