"""An adapter folder on disk: its files, where in it the adapter is, and what other formats look like.

Nothing outside the folder can be reached: it is opened once; every file is opened relative to it, must be a
regular file and is never reached through a symbolic link (O_NOFOLLOW). Files are read, not memory-mapped: a
mapped file that is truncated kills the process, one that is overwritten changes weights in silence.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from router.registry.format.untrusted import (
    HEADER_BYTES,
    MANIFEST_BYTES,
    MAX_FOLDER_ENTRIES,
    MIB,
    PROBES_BYTES,
    REPORT_BYTES,
    Code,
    FolderFindings,
    some,
)

MANIFEST, CONFIG, WEIGHTS = "adapter.toml", "adapter_config.json", "adapter_model.safetensors"
PROBES, REPORT = "probes.jsonl", "report.json"
SIGNATURE = "adapter.sig"
OURS = (MANIFEST, CONFIG, WEIGHTS, PROBES)  # the files that make an adapter: its digest is theirs

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_SHARD = re.compile(
    r"(model|pytorch_model|consolidated|ft-model)[._-].*|(model|pytorch_model)\.(safetensors|bin)"
)
_BASE_FILES = frozenset({"config.json", "generation_config.json", "model.safetensors.index.json"})
RESAVE = "load it where you trust it and save it again with PEFT's save_pretrained, which writes safetensors"
CONVERT = "`lora-router adapters convert` makes safetensors of it without running what is in it"

SEARCHED = 30  # folders that are looked into, of one folder, where no adapter was found above them
BLOCK_BYTES = 512  # unit of st_blocks
HASH_BYTES = 1 << 20
HEAD_BYTES = HEADER_BYTES + 8  # kept of a file that was hashed: what is parsed is what was hashed
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # NONBLOCK: a FIFO must not hang us


class FolderError(Exception):
    """A folder or file cannot be used; carries a code and a message for a finding."""

    def __init__(self, code: Code, message: str, where: str = "") -> None:
        super().__init__(message)
        self.code, self.message, self.where = code, message, where


@dataclass(frozen=True, slots=True)
class FolderEntry:
    """A name in the folder and what kind of thing it is, links not followed."""

    name: str
    mode: int
    size: int
    mtime_ns: int
    inode: int

    @property
    def is_file(self) -> bool:
        """A regular file."""
        return stat.S_ISREG(self.mode)

    @property
    def is_folder(self) -> bool:
        """A directory."""
        return stat.S_ISDIR(self.mode)


class OpenFile:
    """A regular file, open for reading."""

    def __init__(self, descriptor: int, name: str) -> None:
        self.descriptor, self.name = descriptor, name
        self.stat = os.fstat(descriptor)
        self._hashed_head = b""

    @property
    def size(self) -> int:
        """Size in bytes when it was opened."""
        return self.stat.st_size

    def head(self, length: int) -> bytes:
        """The first `length` bytes, or fewer if the file is shorter; those that were hashed, if it was."""
        if length <= len(self._hashed_head):
            return self._hashed_head[:length]
        try:
            return os.pread(self.descriptor, length, 0)
        except OSError as error:
            raise FolderError(Code.FILE_UNREADABLE, f"cannot be read: {_reason(error)}", self.name) from None

    def read(self) -> memoryview:
        """The whole file, read once. Raises FolderError if its size is not what it was when opened."""
        view = memoryview(bytearray(self.size))
        try:
            done = 0
            while done < len(view) and (count := os.preadv(self.descriptor, [view[done:]], done)):
                done += count
            more = os.pread(self.descriptor, 1, len(view))
        except OSError as error:
            raise FolderError(Code.FILE_UNREADABLE, f"cannot be read: {_reason(error)}", self.name) from None
        if done < len(view) or more:
            raise FolderError(Code.FILE_CHANGED, "changed while it was read", self.name)
        return view.toreadonly()

    def sha256(self) -> str:
        """Digest of its contents in hex, read in blocks."""
        digest = hashlib.sha256()
        self.hash_into(digest.update)
        return digest.hexdigest()

    def hash_into(self, update: Callable[[bytes], object]) -> None:
        """Give all of it to `update`, in blocks. Raises FolderError if its size is not as it was."""
        at = 0
        try:
            while block := os.pread(self.descriptor, HASH_BYTES, at):
                if len(self._hashed_head) < HEAD_BYTES:
                    self._hashed_head += block[: HEAD_BYTES - len(self._hashed_head)]
                update(block)
                at += len(block)
        except OSError as error:
            raise FolderError(Code.FILE_UNREADABLE, f"cannot be read: {_reason(error)}", self.name) from None
        if at != self.size:
            raise FolderError(Code.FILE_CHANGED, "changed while it was read", self.name)

    def is_sparse(self) -> bool:
        """Whether parts were never written: fewer blocks than bytes, and a hole (not just compression)."""
        if self.stat.st_blocks * BLOCK_BYTES >= self.size:
            return False
        return os.lseek(self.descriptor, 0, os.SEEK_HOLE) < self.size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)


class Folder:
    """An open adapter folder. Use as a context manager. All methods raise FolderError only."""

    def __init__(self, descriptor: int, name: str) -> None:
        self.descriptor, self.name = descriptor, name

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the folder at `path`; its last component must not be a symbolic link."""
        try:
            return cls(os.open(path, _FOLDER_FLAGS), path.name)
        except (OSError, ValueError) as error:
            message = (
                "is a symbolic link" if os.path.islink(path) else f"not a readable folder: {_reason(error)}"
            )
            raise FolderError(Code.FOLDER_UNREADABLE, message) from None

    def subfolder(self, name: str) -> Folder:
        """Open a folder below, by its name or a path such as out/final, of which no part may be a link."""
        first, _, rest = name.partition("/")
        try:
            inner = Folder(os.open(first, _FOLDER_FLAGS, dir_fd=self.descriptor), first)
        except OSError as error:
            raise FolderError(Code.FOLDER_UNREADABLE, _reason(error), name) from None
        if not rest:
            return inner
        with inner:
            return inner.subfolder(rest)

    def entries(self) -> dict[str, FolderEntry]:
        """Everything in it by name, links not followed; what vanishes meanwhile is left out."""
        try:
            names = os.listdir(self.descriptor)
        except OSError as error:
            raise FolderError(Code.FOLDER_UNREADABLE, _reason(error)) from None
        if len(names) > MAX_FOLDER_ENTRIES:
            message = f"holds {len(names)} entries, at most {MAX_FOLDER_ENTRIES} are allowed"
            raise FolderError(Code.FOLDER_UNREADABLE, message)
        found = (self.entry(name) for name in sorted(names))
        return {entry.name: entry for entry in found if entry is not None}

    def entry(self, name: str) -> FolderEntry | None:
        """One entry, None if there is no such name."""
        try:
            at = os.stat(name, dir_fd=self.descriptor, follow_symlinks=False)
        except OSError:
            return None
        return FolderEntry(name, at.st_mode, at.st_size, at.st_mtime_ns, at.st_ino)

    def file(self, name: str) -> OpenFile:
        """Open a regular file directly in the folder."""
        entry = self.entry(name)
        if entry is not None and not entry.is_file:
            kind = (
                "a symbolic link; copy the file itself" if stat.S_ISLNK(entry.mode) else "not a regular file"
            )
            raise FolderError(Code.FILE_NOT_REGULAR, f"is {kind}", name)
        try:
            opened = OpenFile(os.open(name, _FILE_FLAGS, dir_fd=self.descriptor), name)
        except OSError as error:
            raise FolderError(Code.FILE_UNREADABLE, f"cannot be read: {_reason(error)}", name) from None
        if not stat.S_ISREG(opened.stat.st_mode):
            os.close(opened.descriptor)
            raise FolderError(Code.FILE_NOT_REGULAR, "is not a regular file", name)
        return opened

    def read(self, name: str, most: int) -> bytes:
        """A whole small file of at most `most` bytes."""
        with self.file(name) as opened:
            if opened.size > most:
                message = f"has {opened.size} bytes, at most {most} are allowed"
                raise FolderError(Code.FILE_TOO_LARGE, message, name)
            return bytes(opened.read())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror or "unknown error") if isinstance(error, OSError) else "bad path"


@dataclass(frozen=True, slots=True)
class FolderLayout:
    """Where the parts are. `nested` is the subfolder that holds configuration and weights, such as out/final,
    or ''.
    """

    nested: str
    entries: Mapping[str, FolderEntry]  # of the folder itself
    inner: Mapping[str, FolderEntry]  # of the folder that holds configuration and weights

    def fingerprint(self) -> str:
        """A cheap change detector: names, sizes, mtimes and inodes of what counts; names of the rest."""
        digest = hashlib.sha256()
        for listing in (self.entries, self.inner if self.nested else {}):
            whole = CONFIG not in listing  # an adapter may yet appear in any part of it
            for name, e in sorted(listing.items()):
                count = whole or name in OURS
                fields = (e.mode, e.size, e.mtime_ns, e.inode) if count else ()
                digest.update(repr((name, fields)).encode("utf-8", "surrogateescape"))
            digest.update(b";")
        return digest.hexdigest()


def find_layout(folder: Folder, found: FolderFindings) -> FolderLayout:
    """Find the adapter in `folder`; what is missing is refused. Raises FolderError."""
    entries = folder.entries()
    nested = "" if CONFIG in entries else _nested(folder, entries, found)
    if nested is None or (not nested and CONFIG not in entries):
        if nested is not None:
            _explain_absence(entries, found)
        return FolderLayout("", entries, {})
    inner = entries if not nested else _entries_of(folder, nested)
    if WEIGHTS not in inner:
        _explain_no_weights(inner, found)
    _note_ignored(inner, found)
    return FolderLayout(nested, entries, inner)


def _entries_of(folder: Folder, name: str) -> Mapping[str, FolderEntry]:
    with folder.subfolder(name) as inner:
        return inner.entries()


def _nested(folder: Folder, entries: Mapping[str, FolderEntry], found: FolderFindings) -> str | None:
    """The one subfolder with an adapter, '' if there is none, None (refused) if there are several."""
    inner = [name for name, entry in entries.items() if entry.is_folder]
    names = [name for name in inner if _has_config(folder, name)]
    if not names:  # trainers write out/final
        names = [deep for name in inner[:SEARCHED] for deep in _with_config(folder, name)]
    if len(names) > 1:
        message = f"holds several adapters ({some(names)}); move the one to serve up, or make each a folder"
        found.refuse(Code.SEVERAL_ADAPTERS, message)
        return None
    if names:
        found.note(Code.NESTED_FOLDER, f"the adapter is read from the subfolder {some(names)}")
    return names[0] if names else ""


def _with_config(folder: Folder, name: str) -> list[str]:
    """Folders with an adapter inside the folder `name`, as paths."""
    try:
        with folder.subfolder(name) as outer:
            inner = [one.name for one in outer.entries().values() if one.is_folder]
            return [f"{name}/{one}" for one in inner[:SEARCHED] if _has_config(outer, one)]
    except FolderError:
        return []


def _has_config(folder: Folder, name: str) -> bool:
    try:
        with folder.subfolder(name) as inner:
            return inner.entry(CONFIG) is not None
    except FolderError:
        return False


def _is_merged(name: str) -> bool:
    return name in _BASE_FILES or _SHARD.fullmatch(name) is not None


def explain_missing(names: Collection[str], found: FolderFindings) -> None:
    """Refuse files that are no adapter, by their names alone, with what they probably are."""
    if CONFIG not in names:
        _explain_absence(names, found)
    elif WEIGHTS not in names:
        _explain_no_weights(names, found)


def _explain_absence(names: Collection[str], found: FolderFindings) -> None:
    if any(name.endswith(".gguf") for name in names):
        found.refuse(
            Code.GGUF_WEIGHTS, "GGUF adapters cannot be served; keep the PEFT folder it was made from"
        )
    elif WEIGHTS in names:
        found.refuse(Code.NO_ADAPTER, f"{CONFIG} is missing; copy the whole folder that PEFT saved")
    elif any(name.startswith("pytorch_lora_weights") for name in names):
        found.refuse(Code.KEYS_IMAGE_MODEL, "holds a LoRA of an image model (diffusers)")
    elif any(_is_merged(name) for name in names):
        found.refuse(Code.MERGED_MODEL, f"holds a merged model and no {CONFIG}; export the adapter instead")
    elif any(name.endswith(PICKLES) for name in names):
        found.refuse(Code.PICKLE_WEIGHTS, f"pickle files are never loaded; {CONVERT}")
    else:
        lone = "; a lone weights file is usually a LoRA of an image model (kohya, diffusers)"
        hint = lone if any(name.endswith(".safetensors") for name in names) else ""
        found.refuse(Code.NO_ADAPTER, f"has no {CONFIG}: not an adapter folder as PEFT saves it{hint}")


def _explain_no_weights(names: Collection[str], found: FolderFindings) -> None:
    pickles = [name for name in names if name.startswith("adapter_model") and name.endswith(PICKLES)]
    if any(name.endswith(".gguf") for name in names):
        found.refuse(
            Code.GGUF_WEIGHTS, "GGUF adapters cannot be served; keep the PEFT folder it was made from"
        )
    elif pickles:
        found.refuse(Code.PICKLE_WEIGHTS, f"{some(pickles)}: pickle files are never loaded; {CONVERT}")
    elif any(_is_merged(name) for name in names):
        found.refuse(Code.MERGED_MODEL, f"holds a merged model and no {WEIGHTS}; export the adapter instead")
    else:
        found.refuse(Code.NO_WEIGHTS, f"{WEIGHTS} is missing")


def _note_ignored(entries: Mapping[str, FolderEntry], found: FolderFindings) -> None:
    base = [name for name in entries if _is_merged(name)]
    if base:
        found.note(Code.FILES_IGNORED, f"base files ignored: {some(base)}")
    if "chat_template.jinja" in entries:
        message = f"chat_template.jinja is not used: [prompt] of {MANIFEST} or the base's own template is"
        found.note(Code.FILES_IGNORED, message)
    pickles = [name for name in entries if name.endswith(PICKLES) and not _is_merged(name)]
    if pickles and WEIGHTS in entries:
        found.note(Code.FILES_IGNORED, f"pickle files ignored: {some(pickles)}")


# -- files that are for people


# They are read by name and up to a size, and are part of no digest.
PICTURE_BYTES = MIB
DOCUMENTS: Mapping[str, int] = {  # and the most bytes of each
    REPORT: REPORT_BYTES,
    MANIFEST: MANIFEST_BYTES,
    PROBES: PROBES_BYTES,
    "curves.png": PICTURE_BYTES,
}


def read_document(path: Path, name: str) -> bytes | None:
    """One of `DOCUMENTS` in the folder at `path`; None where it is not there or cannot be read. Blocks."""
    if name not in DOCUMENTS:
        return None
    try:
        with Folder.open(path) as folder:
            return folder.read(name, DOCUMENTS[name])
    except FolderError:
        return None
