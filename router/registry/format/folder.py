"""An adapter folder on disk: its files, and what other formats look like.

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
from itertools import islice
from pathlib import Path
from typing import Self

from router.registry.format.untrusted import (
    HEADER_BYTES,
    MANIFEST_BYTES,
    MAX_FOLDER_ENTRIES,
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

SEARCHED = 30  # entries of a folder without an adapter that are looked into, to say where it is
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

    def names(self) -> frozenset[str]:
        """What is in it, hidden files too."""
        try:
            names = os.listdir(self.descriptor)
        except OSError as error:
            raise FolderError(Code.FOLDER_UNREADABLE, _reason(error)) from None
        if len(names) > MAX_FOLDER_ENTRIES:
            message = f"holds {len(names)} entries, at most {MAX_FOLDER_ENTRIES} are allowed"
            raise FolderError(Code.FOLDER_UNREADABLE, message)
        return frozenset(names)

    def stat(self, name: str) -> os.stat_result | None:
        """Of one entry, links not followed; None if there is no such name."""
        try:
            return os.stat(name, dir_fd=self.descriptor, follow_symlinks=False)
        except OSError:
            return None

    def file(self, name: str) -> OpenFile:
        """Open a regular file directly in the folder."""
        entry = self.stat(name)
        if entry is not None and not stat.S_ISREG(entry.st_mode):
            link = stat.S_ISLNK(entry.st_mode)
            kind = "a symbolic link; copy the file itself" if link else "not a regular file"
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


def _is_merged(name: str) -> bool:
    return name in _BASE_FILES or _SHARD.fullmatch(name) is not None


def explain_missing(names: Collection[str], found: FolderFindings, inside: Collection[str] = ()) -> None:
    """Refuse files that are no adapter, by their names alone, with what they probably are. `inside`: folders
    among them that hold one."""
    if CONFIG in names and WEIGHTS in names:
        return
    missing = WEIGHTS if CONFIG in names else CONFIG
    pickles = [name for name in names if name.endswith(PICKLES) and not _is_merged(name)]
    if any(name.endswith(".gguf") for name in names):
        text = "GGUF adapters cannot be served; keep the PEFT folder it was made from"
        found.refuse(Code.GGUF_WEIGHTS, text)
    elif WEIGHTS in names:
        found.refuse(Code.NO_ADAPTER, f"{CONFIG} is missing; copy the whole folder that PEFT saved")
    elif pickles:
        found.refuse(Code.PICKLE_WEIGHTS, f"{some(pickles)}: pickle files are never loaded; {CONVERT}")
    elif any(map(_is_merged, names)):
        found.refuse(Code.MERGED_MODEL, f"holds a merged model and no {missing}; export the adapter instead")
    elif CONFIG in names:
        found.refuse(Code.NO_WEIGHTS, f"{WEIGHTS} is missing")
    elif inside:
        text = f"the adapter is in a subfolder: copy {some(inside)} itself, which holds {CONFIG}"
        found.refuse(Code.NESTED_FOLDER, text)
    else:
        lone = any(name.endswith(".safetensors") for name in names)
        hint = "; a lone weights file is usually a LoRA of an image model (kohya, diffusers)" if lone else ""
        found.refuse(Code.NO_ADAPTER, f"has no {CONFIG}: not an adapter folder as PEFT saves it{hint}")


def folders_with_adapter(path: Path) -> list[str]:
    """Folders in the folder at `path`, and in those, that hold an adapter."""
    inner = [Path(name) for name in _folders(path)]
    deep = [one / name for one in inner for name in _folders(path / one)]
    return sorted(str(one) for one in (*inner, *deep) if (path / one / CONFIG).is_file())


def _folders(path: Path) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return [one.name for one in islice(entries, SEARCHED) if one.is_dir(follow_symlinks=False)]
    except OSError:
        return []


def note_ignored(names: Collection[str], found: FolderFindings) -> None:
    """Note files beside an adapter that look as if they counted."""
    base = sorted(filter(_is_merged, names))
    if base:
        found.note(Code.FILES_IGNORED, f"base files ignored: {some(base)}")
    if "chat_template.jinja" in names:
        message = f"chat_template.jinja is not used: [prompt] of {MANIFEST} or the base's own template is"
        found.note(Code.FILES_IGNORED, message)
    pickles = sorted(name for name in names if name.endswith(PICKLES) and not _is_merged(name))
    if pickles and WEIGHTS in names:
        found.note(Code.FILES_IGNORED, f"pickle files ignored: {some(pickles)}")


# -- files that are for people


# They are read by name and up to a size, and are part of no digest.
DOCUMENTS: Mapping[str, int] = {  # and the most bytes of each
    "REPORT.md": REPORT_BYTES,
    MANIFEST: MANIFEST_BYTES,
    PROBES: PROBES_BYTES,
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
