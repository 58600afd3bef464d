"""What survives a restart: chosen default versions, overrides of the gate, digests that were proven, hashes
of weights.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import logging
import math
import os
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from itertools import islice
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from router.built_in import is_built_in_folder
from router.errors import NotSaved
from router.folders import state_folder
from router.types import Override

log = logging.getLogger(__name__)

MOST_SERVED = 20  # versions of a name that are remembered for having been the default


def state_dir(dirs: Sequence[Path], base: Path | None = None) -> Path:
    """The folder for the state of a server over `dirs`, below the user's state folder.

    The folder of the built-in adapters does not count beside others: it makes no difference whether that is
    served, nor where the package is installed.
    """
    named = [d for d in dirs if not is_built_in_folder(d, "adapters")] or dirs
    real = "\n".join(os.path.realpath(d) for d in named)
    return (base or state_folder()) / "registry" / hashlib.sha256(os.fsencode(real)).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class FormerDefault:
    """A version was the default until another took over: its weights then, and whether it was routed to."""

    weights_sha256: str
    routed: bool


@dataclass(frozen=True, slots=True)
class BookLine:
    """What was done with an override of an adapter, and when."""

    action: str
    name: str
    override: Override
    time: float


@dataclass(frozen=True, slots=True)
class Document:
    """`defaults.json` as it should be. It may be of thousands of adapters: made on the event loop, encoded in
    the thread that writes it."""

    dirs: Sequence[str]
    chosen: Mapping[str, str]
    overrides: Mapping[str, Override]
    served: Mapping[str, Mapping[str, FormerDefault]]
    firsts: Mapping[str, str]

    def encoded(self) -> bytes:
        """The bytes of the file."""
        document = {
            "format": 1,
            "adapters_dirs": self.dirs,
            "defaults": self.chosen,
            "overrides": {name: asdict(override) for name, override in self.overrides.items()},
            "served": {
                name: {version: asdict(served) for version, served in versions.items()}
                for name, versions in self.served.items()
            },
            "firsts": self.firsts,
        }
        return json.dumps(document, indent=1, sort_keys=True).encode()


@dataclass(frozen=True, slots=True)
class PlannedDefault:
    """Another choice for `name` ('' for `version`: none), lines for the book, and the file with it."""

    name: str
    version: str
    override: Override | None
    lines: tuple[BookLine, ...]
    document: Document


class DefaultChoices:
    """Default versions set by an operator, overrides of the gate for them, and which versions were the
    default before, in `defaults.json`.

    Kept on the event loop; only `read`, `save` and `write` touch the disk, in a thread, one at a time.
    `unsaved`: `touched` was called for something that `write` has to write some time.
    """

    def __init__(self, folder: Path, dirs: Sequence[Path]) -> None:
        self._file, self._dirs = folder / "defaults.json", [str(d) for d in dirs]
        self._chosen: dict[str, str] = {}
        self._overrides: dict[str, Override] = {}
        self._served: dict[str, dict[str, FormerDefault]] = {}
        self._firsts: dict[str, str] = {}
        self._book = folder / "overrides.jsonl"
        self._lines: tuple[BookLine, ...] = ()
        self._moved: set[str] = set()
        self.unsaved = False
        self.touched: Callable[[], None] = lambda: None

    def read(self) -> None:
        """Read the file; one that is damaged counts as empty, and the log says so."""
        try:
            document = json.loads(self._file.read_bytes())
            chosen = document["defaults"]
            if not isinstance(chosen, dict) or not all(isinstance(v, str) for v in chosen.values()):
                raise ValueError("not a table of versions")
            self._chosen = chosen
            self._read_overrides(document)
            self._read_served(document)
            if isinstance(firsts := document.get("firsts"), dict):
                self._firsts = {name: version for name, version in firsts.items() if isinstance(version, str)}
        except FileNotFoundError:
            self._chosen = {}
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            log.warning("default versions set earlier are lost: %s cannot be used (%s)", self._file, error)

    def _read_overrides(self, document: dict[str, Any]) -> None:
        try:
            overrides = document.get("overrides", {})
            self._overrides = {name: override_from_json(value) for name, value in overrides.items()}
        except (ValueError, AttributeError) as error:
            log.warning("overrides of the gate made earlier are lost: %s: %s", self._file, error)

    def _read_served(self, document: dict[str, Any]) -> None:
        try:
            kept = document.get("served", {})
            self._served = {
                name: {version: served_from_json(value) for version, value in versions.items()}
                for name, versions in kept.items()
            }
        except (ValueError, AttributeError) as error:
            log.warning("which versions were the default before is lost: %s: %s", self._file, error)

    def get(self, name: str) -> str:
        """The version chosen for `name`, or ''."""
        return self._chosen.get(name, "")

    def override(self, name: str) -> Override | None:
        """The override of the gate for the version chosen for `name`."""
        return self._overrides.get(name)

    def planned(self, name: str, version: str = "", override: Override | None = None) -> PlannedDefault:
        """The choice of a version, or of none; nothing changes until it is saved and taken.

        An override of the gate holds until another version is chosen, or the same one without it.
        """
        chosen, overrides = {**self._chosen, name: version}, {**self._overrides}
        if not version:
            del chosen[name]
        held, lines, self._lines = overrides.pop(name, None), self._lines, ()
        if override is not None:
            overrides[name] = override
        if held is not None and held != override:
            lines += (BookLine("no longer overruled", name, held, time.time()),)
        if override is not None and held != override:
            lines += (BookLine("overruled", name, override, override.time),)
        return PlannedDefault(name, version, override, lines, self._document(chosen, overrides))

    def save(self, change: PlannedDefault) -> None:
        """Book and file on the disk; blocks. Raises NotSaved, and the book then says so where it can."""
        try:
            for line in change.lines:
                write_override(self._book, line)
            write_atomically(self._file, change.document.encoded())
        except OSError as error:
            what = f"{change.name}@{change.version}" if change.version else f"of {change.name}"
            log.warning("default %s is not set: cannot write %s (%s)", what, self._file, error)
            self._strike(change.lines)
            raise NotSaved(f"cannot write {self._file} ({error})") from error

    def _strike(self, lines: Sequence[BookLine]) -> None:
        try:
            for line in lines:
                write_override(self._book, replace(line, action=f"not saved: {line.action}"))
        except OSError as error:
            log.warning("the book may have lines of what was not saved: %s", error)

    def take(self, change: PlannedDefault) -> None:
        """It holds from now on."""
        self._hold(change.name, change.version, change.override)

    def _hold(self, name: str, version: str, override: Override | None) -> None:
        self._chosen.pop(name, None)
        self._overrides.pop(name, None)
        if version:
            self._chosen[name] = version
        if override is not None:
            self._overrides[name] = override

    def moved(self) -> set[str]:
        """Names of which something changed that nobody waits for, since this was asked last."""
        moved, self._moved = self._moved, set()
        return moved

    def document(self) -> Document:
        """The file as it should be, for `write`."""
        self.unsaved = False
        return self._document({**self._chosen}, {**self._overrides})

    def write(self, document: Document) -> None:
        """The file alone, on the disk; blocks. Raises OSError."""
        write_atomically(self._file, document.encoded())

    def served(self, name: str, version: str) -> FormerDefault | None:
        """What is remembered of a version that was the default before."""
        return self._served.get(name, {}).get(version)

    def first(self, name: str) -> str:
        """The version that passes the gate as the first one of `name`, or ''."""
        return self._firsts.get(name, "")

    def note_first(self, name: str, version: str) -> None:
        """Remember it across restarts, and at other edges."""
        if self._firsts.get(name) != version:
            self._firsts[name] = version
            self._touch(name)

    def replaced(self, name: str, version: str, served: FormerDefault) -> None:
        """It was the default until now."""
        versions = self._served.setdefault(name, {})
        versions.pop(version, None)
        versions[version] = served  # the newest last
        while len(versions) > MOST_SERVED:
            del versions[next(iter(versions))]
        self._touch(name)

    def went_back(self, name: str, entry: Override) -> None:
        """A default that did not pass, allowed without force: for the record, once the choice is saved."""
        self._lines += (BookLine("not overruled: went back", name, entry, entry.time),)

    def bind(self, name: str, weights_sha256: str) -> Override:
        """An override that was made before the weights were read is about these."""
        override = self._overrides[name] = replace(self._overrides[name], weights_sha256=weights_sha256)
        self._touch(name)
        return override

    def _touch(self, name: str) -> None:
        self._moved.add(name)
        self.unsaved = True
        self.touched()

    # -- with other edges

    def entries(self) -> dict[str, dict[str, Any]]:
        """All that is kept of each name, as JSON has it."""
        names = {*self._chosen, *self._overrides, *self._served, *self._firsts}
        return {name: self.entry(name) for name in names}

    def entry(self, name: str, change: PlannedDefault | None = None) -> dict[str, Any]:
        """The same of one name, with a change of it."""
        version, override = self.get(name), self.override(name)
        if change is not None:
            version, override = change.version, change.override
        served = {key: asdict(one) for key, one in self._served.get(name, {}).items()}
        return {
            "version": version,
            "override": asdict(override) if override else None,
            "served": served,
            "first": self.first(name),
        }

    def agree(self, name: str, entry: Any) -> None:
        """Take over what another edge's `entry` says; None: there is none. Raises ValueError for a damaged
        one, and changes nothing."""
        entry = {"version": "", "override": None, "served": {}} if entry is None else entry
        if not isinstance(entry, Mapping) or not isinstance(version := entry.get("version"), str):
            raise ValueError("not a choice")
        if not isinstance(first := entry.get("first", ""), str):
            raise ValueError("the first version is not a text")
        made = entry.get("override")
        override = None if made is None else override_from_json(made)
        served = {of: served_from_json(one) for of, one in dict(entry.get("served") or {}).items()}
        first = first or self.first(name)
        held = (self.get(name), self.override(name), self._served.get(name, {}), self.first(name))
        if (version, override, served, first) == held:
            return
        self._hold(name, version, override)
        if first:
            self._firsts[name] = first
        for of, one in served.items():
            known = self._served.setdefault(name, {})
            if of not in known or one.weights_sha256:
                known[of] = one
        self.unsaved = True

    def _document(self, chosen: Mapping[str, str], overrides: Mapping[str, Override]) -> Document:
        served = {name: {**versions} for name, versions in self._served.items()}
        return Document(self._dirs, chosen, overrides, served, {**self._firsts})


def write_override(book: Path, line: BookLine) -> None:
    """Add a line to the book and to the log; blocks until it is on the disk. Raises OSError.

    `overrides.jsonl` has one line for every override, every one taken back, every way back. It only grows.
    """
    override = line.override
    entry = {"time": line.time, "action": line.action, "adapter": line.name}
    log.warning(
        "gate of %s@%s %s (by %s: %s); it found: %s",
        *(line.name, override.version, line.action, override.by, override.reason or "no reason given"),
        override.finding,
    )
    append_durably(book, json.dumps({**entry, "override": asdict(override)}))


# -- what was written as JSON, read again


def override_from_json(value: Any) -> Override:
    """As `asdict` wrote it. Raises ValueError for anything else."""
    if not isinstance(value, Mapping):
        raise ValueError("an override is not a table")
    names = [f.name for f in fields(Override)]
    when, texts = value.get("time"), [value.get(name) for name in names if name != "time"]
    if not isinstance(when, float) or not math.isfinite(when) or not all(isinstance(t, str) for t in texts):
        raise ValueError("an override is damaged")
    return Override(**{name: value[name] for name in names})


def served_from_json(value: Any) -> FormerDefault:
    """As `asdict` wrote it. Raises ValueError for anything else."""
    if not isinstance(value, Mapping):
        raise ValueError("an earlier default is not a table")
    weights, routed = value.get("weights_sha256"), value.get("routed")
    if not isinstance(weights, str) or not isinstance(routed, bool):
        raise ValueError("an earlier default is damaged")
    return FormerDefault(weights, routed)


# -- files that are on the disk when a call returns


def write_atomically(path: Path, data: bytes) -> None:
    """Write beside `path` and rename, so that a reader or a crash sees the old or the new file, whole.

    The new one is on the disk when this returns. Raises OSError; the old file is then there still, unless
    the disk failed after the rename. Blocks: not for the event loop.
    """
    _make_folder(path.parent)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    _sync_folder(path.parent)


def append_durably(path: Path, line: str) -> None:
    """Add a line; it is on the disk when this returns. Raises OSError. Blocks: not for the event loop."""
    _make_folder(path.parent)
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")
        file.flush()
        os.fsync(file.fileno())
    _sync_folder(path.parent)


def _make_folder(folder: Path) -> None:
    """The folder and those above it, each entered in the one above on the disk too."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that does not sync folders
            raise
    finally:
        os.close(handle)


# -- what is found out once: digests that were proven, hashes of weights


MAX_ENTRIES = 20_000
_SHA256 = re.compile(r"[0-9a-f]{64}")


class PersistentCache:
    """What was found out once, one line each: a key and perhaps a value. The newest MAX_ENTRIES
    are kept.

    `again` says what happens again where the file cannot be used.
    """

    def __init__(self, file: Path, again: str) -> None:
        self._file, self._again = file, again
        self._values: dict[str, str] = {}
        self._writable = True

    def read(self) -> None:
        """Read the file; keeps the newest and shortens a file that is much longer."""
        try:
            lines = self._file.read_text("ascii").splitlines()
            self._values = dict(line.partition(" ")[::2] for line in lines[-MAX_ENTRIES:] if line)
            if len(lines) > 2 * MAX_ENTRIES:
                kept = (_line(key, value) for key, value in self._values.items())
                write_atomically(self._file, "".join(kept).encode())
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            log.warning("%s: %s cannot be used (%s)", self._again, self._file, error)

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def get(self, key: str) -> str | None:
        """What was noted."""
        return self._values.get(key)

    def note(self, values: Mapping[str, str]) -> None:
        """Remember them. Blocks for one small append: call it from one worker thread, always the same."""
        new = {key: value for key, value in values.items() if self._values.get(key) != value}
        self._values.update(new)
        for key in list(islice(self._values, max(len(self._values) - MAX_ENTRIES, 0))):
            del self._values[key]
        if not new or not self._writable:
            return
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a", encoding="ascii") as file:
                file.write("".join(_line(key, value) for key, value in new.items()))
        except OSError as error:
            self._writable = False
            log.warning("%s after a restart: cannot write %s (%s)", self._again, self._file, error)


class Proven(PersistentCache):
    """Digests whose probes passed on this base, in `proven`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "proven", "probes run again")

    def add(self, key: str) -> None:
        """Remember one; see `note`."""
        self.note({key: ""})


class Hashed(PersistentCache):
    """The sha256 of weights files that look as they did when they were read, in `weights`.

    It decides about routing alone: whatever is loaded is hashed again.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "weights", "weights are hashed again")

    def get(self, key: str) -> str | None:
        """The sha256 in hex; None where there is none, or where the line is damaged."""
        value = super().get(key)
        return value if value is not None and _SHA256.fullmatch(value) else None


def _line(key: str, value: str) -> str:
    return f"{key} {value}\n" if value else f"{key}\n"


# -- threads for files

LOAD_THREADS = 4
PIECE_SECONDS = 0.005  # of work on the event loop until others have their turn

P = ParamSpec("P")
T = TypeVar("T")


class Workers:
    """The event loop never waits for a disk, and loads that requests wait for never queue behind looks."""

    def __init__(self) -> None:
        self._loads = ThreadPoolExecutor(LOAD_THREADS, thread_name_prefix="adapters-load")
        self._ordered = ThreadPoolExecutor(1, thread_name_prefix="adapters-look")

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do `work` beside other work."""
        return await self._submit(self._loads, work, *args, **kwargs)

    async def in_order(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do `work` after all earlier calls of this method: one at a time."""
        return await self._submit(self._ordered, work, *args, **kwargs)

    @staticmethod
    async def _submit(pool: ThreadPoolExecutor, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.wrap_future(pool.submit(work, *args, **kwargs))

    async def close(self) -> None:
        """Finish what runs, drop what waits."""
        for pool in (self._loads, self._ordered):
            pool.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(self._loads.shutdown)
        await asyncio.to_thread(self._ordered.shutdown)


async def yield_if_long(began: float) -> float:
    """Let others have a turn where this one has lasted long enough; gives when the present one began."""
    if time.monotonic() - began < PIECE_SECONDS:
        return began
    await asyncio.sleep(0)
    return time.monotonic()
