"""A correction, which says who should have answered a request, and corrections on the disk: for each tenant
a file of JSON lines.

The files are durable and bounded. A line that was cut off by a crash or a full disk is no correction, and
spoils none. Server and commands may work on the files at the same time.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

MAX_TEXT = 4_000  # characters: a longer text can be no example of an adapter


@dataclass(frozen=True, slots=True)
class Correction:
    """`label` is the adapter that should have answered, `chosen` the one that did. "" is the base. None for
    `chosen`: it is not known any more, or several did at once. `reason` and `confidence` are the decision's.
    Without `text` it says only that it was so.
    """

    time: float  # unix seconds
    response_id: str
    label: str
    chosen: str | None = None
    reason: str = ""
    confidence: float = 0.0
    text: str = ""
    tenant: str = ""

    @property
    def wrong(self) -> bool:
        """Whether somebody else answered."""
        return self.chosen is not None and self.chosen != self.label


def to_line(correction: Correction) -> bytes:
    """One line, its end included. The keys `text` and `label` are those of requests for `route calibrate`."""
    fields: dict[str, Any] = {
        "time": datetime.fromtimestamp(correction.time, UTC).isoformat(timespec="milliseconds"),
        "tenant": correction.tenant,
        "response_id": correction.response_id,
        "label": correction.label,
        "chosen": correction.chosen,
        "reason": correction.reason,
        "confidence": round(correction.confidence, 6),
    }
    if correction.text:
        fields["text"] = correction.text
    return json.dumps(fields).encode() + b"\n"  # ASCII: no reader takes a letter of it for the end of a line


def from_line(line: bytes) -> Correction | None:
    """None for what is no correction, such as a line that was cut off."""
    try:
        fields = json.loads(line)
        found = _from_fields(fields) if isinstance(fields, dict) else None
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
    return found


def _from_fields(fields: dict[str, Any]) -> Correction:
    """Raises ValueError, KeyError or TypeError for fields that are not there or of another kind."""
    chosen = fields.get("chosen")
    texts = {key: fields.get(key, "") for key in ("response_id", "reason", "text", "tenant")}
    if not isinstance(chosen, str | None) or not all(
        isinstance(value, str) for value in (fields["label"], *texts.values())
    ):
        raise TypeError("a text is none")
    when = datetime.fromisoformat(fields["time"]) if "time" in fields else datetime.fromtimestamp(0, UTC)
    confidence = float(fields.get("confidence", 0.0))
    if not math.isfinite(confidence):
        raise ValueError("confidence is not finite")
    return Correction(
        time=(when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp(),
        label=fields["label"],
        chosen=chosen,
        confidence=confidence,
        **texts,
    )


def latest(corrections: Iterable[Correction]) -> list[Correction]:
    """Of each answer the latest correction, in the order in which they were made."""
    found: dict[tuple[object, ...], Correction] = {}
    for number, one in enumerate(corrections):
        key = (one.tenant, one.response_id) if one.response_id else (number,)
        found.pop(key, None)
        found[key] = one
    return list(found.values())


# -- files

FOLDER = "corrections"  # in the state folder
MOST_BYTES = 16 << 20  # of a tenant's file
ENDING = ".jsonl"
NOBODYS = "_"  # the file's name without tenants: no tenant is called so
LOCK = ".lock"
_TENANT = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


@dataclass(frozen=True, slots=True)
class StoredCorrections:
    """`damaged` lines were no corrections."""

    corrections: tuple[Correction, ...]
    damaged: int = 0


class CorrectionStore:
    """The files in a folder, which is made when the first correction comes."""

    def __init__(self, folder: Path, most_bytes: int = MOST_BYTES) -> None:
        self._folder, self._most = folder, most_bytes

    def append(self, correction: Correction) -> None:
        """On the disk when it returns. A file that is full loses the older half. Raises OSError, and has then
        kept nothing."""
        line = to_line(correction)
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._folder / file_name(correction.tenant)
        with self._locked():
            if path.exists() and path.stat().st_size + len(line) > self._most:
                write_whole(path, _newest(path.read_bytes(), self._most // 2))
            new = not path.exists()
            _append(path, line)
            if new:
                _sync(self._folder)

    def read(self, tenant: str | None = None) -> StoredCorrections:
        """All, or those of one tenant ("" without tenants); of each answer the latest one. Raises OSError."""
        found: list[Correction] = []
        damaged = 0
        for path in self._files(tenant):
            for line in path.read_bytes().split(b"\n"):
                if (one := from_line(line)) is not None:
                    found.append(one)
                elif line.strip():
                    damaged += 1
        return StoredCorrections(tuple(sorted(latest(found), key=lambda one: one.time)), damaged)

    def clear(self, before: float | None = None, tenant: str | None = None) -> int:
        """Take away those of a tenant (None: all) from before that time (None: whenever), in unix seconds;
        returns how many lines went, damaged ones too. Raises OSError."""
        if not self._folder.is_dir():
            return 0
        gone = 0
        with self._locked():
            for path in self._folder.glob(".*.new"):  # what a crash left of `write_whole`
                path.unlink()
            for path in self._files(tenant):
                lines = [line for line in path.read_bytes().split(b"\n") if line.strip()]
                left = [line for line in lines if _is_since(line, before)]
                gone += len(lines) - len(left)
                if left:
                    write_whole(path, b"\n".join(left) + b"\n")
                else:
                    path.unlink()
            _sync(self._folder)
        return gone

    def _files(self, tenant: str | None) -> list[Path]:
        if tenant is None:
            return sorted(self._folder.glob(f"*{ENDING}"))
        path = self._folder / file_name(tenant)
        return [path] if path.exists() else []

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone among all processes that write here."""
        handle = os.open(self._folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


def file_name(tenant: str) -> str:
    """Of a tenant's file. Raises ValueError for what can be no tenant, such as a path."""
    if tenant and not _TENANT.fullmatch(tenant):
        raise ValueError(f"no tenant is called {tenant!r}")
    return (tenant or NOBODYS) + ENDING


def _is_since(line: bytes, before: float | None) -> bool:
    one = from_line(line)
    return before is not None and one is not None and one.time >= before


def _newest(data: bytes, most: int) -> bytes:
    """Whole lines from the end, at most so many bytes."""
    if len(data) <= most:
        return data
    tail = data[len(data) - most :]
    return tail[tail.find(b"\n") + 1 :]


def _append(path: Path, line: bytes) -> None:
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
    with os.fdopen(handle, "r+b", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        torn = False
        if size:
            file.seek(size - 1)
            torn = file.read(1) != b"\n"  # a crash, or a full disk, in the middle of a line
        try:
            left = memoryview(b"\n" + line if torn else line)
            while left:
                left = left[file.write(left) :]  # a disk that is almost full takes a part, without a word
            os.fsync(handle)
        except OSError:
            with suppress(OSError):
                file.truncate(size)
            raise


def write_whole(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Whole and on the disk, or not at all. Raises OSError."""
    beside = path.with_name(f".{path.name}.new")
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(handle, "wb") as file:
        os.fchmod(handle, mode)
        file.write(data)
        file.flush()
        os.fsync(handle)
    os.replace(beside, path)
    _sync(path.parent)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
