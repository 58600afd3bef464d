"""Which files of a source are taken, and their bytes: as many as were announced, resumed where they ended,
tried again when the network fails, and hashed at the end.

A name that a source gives is never written to the disk: it is compared with the list here.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TypeVar
from urllib.error import HTTPError

from router.errors import AdapterRejected, DataLoss, FailedPrecondition, ResourceExhausted, Unavailable
from router.registry.format.folder import (
    CONFIG,
    MANIFEST,
    PICKLES,
    PROBES,
    REPORT,
    SIGNATURE,
    WEIGHTS,
    explain_missing,
)
from router.registry.format.untrusted import (
    CONFIG_BYTES,
    MANIFEST_BYTES,
    MIB,
    PROBES_BYTES,
    REPORT_BYTES,
    SIGNATURE_FILE_BYTES,
    WEIGHTS_BYTES,
    FolderFindings,
    some,
)
from router.sources.source import HASH_BYTES, Listing, Passing, Readable, RemoteFile, StartOver

# Small ones first: what is wrong with them is known before the weights come.
TAKEN = {
    MANIFEST: MANIFEST_BYTES,
    CONFIG: CONFIG_BYTES,
    PROBES: PROBES_BYTES,
    SIGNATURE: SIGNATURE_FILE_BYTES,
    REPORT: REPORT_BYTES,
    "README.md": MIB,
    **dict.fromkeys(("LICENSE", "LICENSE.md", "LICENSE.txt", "NOTICE", "NOTICE.txt"), MIB),
    "tokenizer.json": 64 * MIB,  # its added tokens are compared with the base's vocabulary
    WEIGHTS: WEIGHTS_BYTES,
}
# Without one of these, where the source has it, it is another adapter.
NEEDED = (CONFIG, MANIFEST, PROBES, SIGNATURE, WEIGHTS)
CODE = (".py", ".sh", ".ipynb", ".js", ".so", ".exe", ".jar")
UNKNOWN = "no file of an adapter"
KINDS = (
    (PICKLES, "pickle, which runs code when it is read"),
    (CODE, "code"),
    ((".safetensors", ".gguf", ".h5", ".onnx", ".msgpack", ".npz"), "weights, but not the adapter's"),
)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A file or folder that was not taken, and why."""

    name: str
    why: str


@dataclass(frozen=True, slots=True)
class Selection:
    """What is taken, in the order in which it is fetched, and what is left where it is."""

    taken: tuple[RemoteFile, ...]
    left: tuple[LeftOut, ...]

    @property
    def bytes(self) -> int:
        """As many as the source announces."""
        return sum(file.size for file in self.taken)


def choose(listing: Listing, *, report: bool, most: int) -> Selection:
    """What to take of a listing; `report`: the report card, too. Raises AdapterRejected if it is no adapter,
    ResourceExhausted if what is taken has more than `most` bytes.
    """
    plain = {file.name: file for file in listing.files if "/" not in file.name and not file.link}
    _refuse_no_adapter(listing, plain)
    taken, left = [], list(_not_ours(listing))
    for name, bound in TAKEN.items():
        file = plain.get(name)
        if file is None:
            continue
        if name == REPORT and not report:
            left.append(
                LeftOut(name, "a claim of its author, on which routing would rely; --report takes it")
            )
        elif file.size <= bound:
            taken.append(file)
        elif name in NEEDED:
            raise AdapterRejected(f"{name} has {file.size} bytes, at most {bound} are allowed")
        else:
            left.append(LeftOut(name, f"has {file.size} bytes, more than {bound}"))
    choice = Selection(tuple(taken), tuple(left))
    if choice.bytes > most:
        raise ResourceExhausted(
            f"the adapter has {choice.bytes} bytes, at most {most} are fetched; the setting host_memory_mb "
            "allows more"
        )
    return choice


def _refuse_no_adapter(listing: Listing, plain: dict[str, RemoteFile]) -> None:
    links = [file.name for file in listing.files if file.link and file.name in NEEDED]
    if links:
        raise AdapterRejected(f"{some(links)}: a link, and none is followed; name the folder with the files")
    inside = sorted({f.name.rpartition("/")[0] for f in listing.files if f.name.endswith(f"/{CONFIG}")})
    if CONFIG not in plain and inside:
        raise AdapterRejected(f"the adapter is in a folder: say --subfolder with one of {some(inside, 5)}")
    found = FolderFindings()
    explain_missing(plain, found)
    if found.refused:
        raise AdapterRejected("; ".join(map(str, found)))


def _not_ours(listing: Listing) -> Iterator[LeftOut]:
    folders: dict[str, int] = dict.fromkeys(listing.folders, 0)
    for file in listing.files:
        folder, inside, _ = file.name.partition("/")
        if inside:
            folders[folder] = folders.get(folder, 0) + 1
        elif file.link:
            yield LeftOut(file.name, "a link, and none is followed")
        elif file.name not in TAKEN:
            yield LeftOut(file.name, _kind(file.name))
    for folder, count in folders.items():
        yield LeftOut(f"{folder}/", f"a folder with {count} files" if count else "a folder")


def _kind(name: str) -> str:
    lower = name.lower()
    return next((kind for endings, kind in KINDS if lower.endswith(endings)), UNKNOWN)


def left_out(left: Sequence[LeftOut]) -> str:
    """What was left on one line, by reason, what could do harm first."""
    names: dict[str, list[str]] = {}
    for one in sorted(left, key=lambda one: one.why == UNKNOWN):
        names.setdefault(one.why, []).append(one.name)
    return "; ".join(f"{some(found)} ({why})" for why, found in names.items())


# -- their bytes


PART = ".part"
ATTEMPTS = 6  # one after the other that bring nothing
MOST_ATTEMPTS = 200  # of one file: a source that gives a byte at a time is not waited for
LONGEST_WAIT = 120.0  # seconds a source may ask for
BUSY = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)
FULL = (errno.ENOSPC, errno.EDQUOT)
R = TypeVar("R")

Progress = Callable[[str, int, int], None]
"""Called with a file's name, how many of its bytes are here, and how many it has."""
Pause = Callable[[str, float], None]
"""Called with what went wrong, and for how many seconds to wait before it is tried again."""


@dataclass(slots=True)
class Retries:
    """Waits between attempts, longer each time, and gives up."""

    pause: Pause
    failed: int = 0
    attempts: int = 0

    def wait(self, fault: Passing) -> None:
        """After a failed attempt. Raises Unavailable if there is to be no other."""
        self.failed, self.attempts = self.failed + 1, self.attempts + 1
        if fault.after is not None and fault.after > LONGEST_WAIT:
            text = f"{fault.message}, and asks to wait {fault.after:.0f} s: run the same command then"
            raise Unavailable(text, fault.after)
        if self.failed >= ATTEMPTS or self.attempts >= MOST_ATTEMPTS:
            raise Unavailable(f"{fault.message} ({self.attempts} attempts); run the same command again later")
        self.pause(fault.message, 2.0 ** (self.failed - 1) if fault.after is None else fault.after)

    def progressed(self) -> None:
        """An attempt brought something: the next failure is a first one again."""
        self.failed = 0


def with_retries(ask: Callable[[], R], pause: Pause) -> R:
    """The answer, asked for again while faults are passing ones, as most OSErrors are."""
    retries = Retries(pause)
    while True:
        try:
            with _passing():
                return ask()
        except Passing as fault:
            retries.wait(fault)


@contextmanager
def _passing() -> Iterator[None]:
    """An OSError of a source as Passing, or as FailedPrecondition where another attempt would not help."""
    try:
        yield
    except HTTPError as error:
        text = f"{error.url}: {error}"
        passing = error.code in BUSY or error.code >= HTTPStatus.INTERNAL_SERVER_ERROR
        raise (Passing(text) if passing else FailedPrecondition(text)) from error
    except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
        raise FailedPrecondition(str(error)) from error
    except OSError as error:
        raise Passing(str(error) or type(error).__name__) from error


@dataclass(frozen=True, slots=True)
class Transfer:
    """Files of one source into one folder."""

    source: Readable
    folder: Path
    progress: Progress
    pause: Pause

    def fetch(self, file: RemoteFile) -> str:
        """The file, whole; gives its sha256. What is here of it from before is used.

        Raises DataLoss if it is not what was announced, ResourceExhausted on a full disk, Unavailable; what
        came stays, but for DataLoss.
        """
        whole, part = self.folder / file.name, self.folder / f"{file.name}{PART}"
        if not self._is_here(file, whole):
            for again in (False, True):
                pieces = self._fill(file, part)
                if file.check is None or file.check.fits(part):
                    break
                part.unlink()
                if again or not pieces:
                    raise DataLoss(f"{file.name}: the bytes that came are not those that were announced")
            os.replace(part, whole)
        self.progress(file.name, file.size, file.size)
        if file.check is not None and file.check.kind == "sha256":
            return file.check.value
        return sha256_of(whole)

    def _is_here(self, file: RemoteFile, whole: Path) -> bool:
        if not whole.is_file() or whole.stat().st_size != file.size:
            return False
        return file.check is None or file.check.fits(whole)

    def _fill(self, file: RemoteFile, part: Path) -> bool:
        """Bring the part to the announced size; says whether it is of several pieces."""
        with full_disk_explained(self.folder.parent.parent), part.open("ab", buffering=0) as out:
            if out.tell() > file.size:
                out.truncate(0)
            retries, done, pieces = Retries(self.pause), False, False
            while not done:
                before = os.fstat(out.fileno()).st_size
                pieces = pieces or before > 0
                try:
                    self._attempt(file, out.fileno())
                    done = True
                except StartOver:
                    os.ftruncate(out.fileno(), 0)
                    pieces = False
                    retries.wait(Passing(f"{file.name}: the source does not go on in the middle"))
                except Passing as fault:
                    if os.fstat(out.fileno()).st_size > before:
                        retries.progressed()
                    retries.wait(fault)
            os.fsync(out.fileno())
        return pieces

    def _attempt(self, file: RemoteFile, out: int) -> None:
        at = os.fstat(out).st_size
        self.progress(file.name, at, file.size)
        if at == file.size and at:
            return
        with closing(self.source.read(file, at)) as blocks:
            while (block := self._next(blocks)) is not None:
                if at + len(block) > file.size:
                    raise DataLoss(f"{file.name}: {file.size} bytes were announced, and more come")
                _write(out, block)
                at += len(block)
                self.progress(file.name, at, file.size)
        if at < file.size:
            raise Passing(f"{file.name}: {file.size} bytes were announced, and {at} came")

    @staticmethod
    def _next(blocks: Iterator[bytes]) -> bytes | None:
        with _passing():
            return next(blocks, None)


def _write(out: int, block: bytes) -> None:
    view = memoryview(block)
    while view:
        view = view[os.write(out, view) :]


def sha256_of(path: Path) -> str:
    """Of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(HASH_BYTES):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def full_disk_explained(adapters: Path) -> Iterator[None]:
    """A full disk as an error that says what stays."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        text = f"{adapters}: the disk is full. What came is kept: make room, run the same command again"
        raise ResourceExhausted(text) from None
