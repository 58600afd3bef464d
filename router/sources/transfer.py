"""Which files of a source are taken, and their bytes: as many as were announced, and hashed once here.

A name that a source gives is never written to the disk: it is compared with the list here.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
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
from router.sources.source import AdapterSource, Listing, Progress, RemoteFile

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


BUSY = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)
FULL = (errno.ENOSPC, errno.EDQUOT)


def fetch(source: AdapterSource, file: RemoteFile, folder: Path, progress: Progress) -> str:
    """Bring a file into the folder; gives its sha256. Raises DataLoss if it is not what was announced."""

    def bounded(name: str, done: int, size: int) -> None:
        if done > file.size:
            raise DataLoss(f"{file.name}: {file.size} bytes were announced, and more come")
        progress(name, done, size)

    path = folder / file.name
    progress(file.name, 0, file.size)
    with faults_explained():
        source.fetch(file, path, bounded)
    if (size := path.stat().st_size) != file.size:
        raise DataLoss(f"{file.name}: {file.size} bytes were announced, and {size} came; try again")
    sha256 = sha256_of(path)
    if file.sha256 and sha256 != file.sha256:
        raise DataLoss(f"{file.name}: the bytes that came are not those that were announced")
    return sha256


@contextmanager
def faults_explained() -> Iterator[None]:
    """An OSError of a source as an error that says what to do. Libraries of sources have tried again."""
    try:
        yield
    except HTTPError as error:
        text = f"{error.url}: {error}"
        if error.code in BUSY or error.code >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise Unavailable(f"{text}; run the same command again later") from error
        raise FailedPrecondition(text) from error
    except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
        raise FailedPrecondition(str(error)) from error
    except OSError as error:
        if error.errno in FULL:
            raise ResourceExhausted("the disk is full: make room, and run the same command again") from None
        raise Unavailable(f"{str(error) or type(error).__name__}; run the same command again") from error


def sha256_of(path: Path) -> str:
    """Of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
