"""A folder on this machine, read as the server reads adapter folders: regular files, no links followed."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

from router.errors import AdapterRejected, DataLoss
from router.registry.format.folder import Folder, FolderError
from router.sources.source import HASH_BYTES, FolderSource, Listing, RemoteFile, state_of


class Local(FolderSource):
    """See Source."""

    def __init__(self, path: Path, subfolder: str = "") -> None:
        self._path = (path / subfolder).absolute()
        self.reference = str(self._path)

    def listing(self) -> Listing:
        """See Source."""
        try:
            with Folder.open(self._path) as folder:
                entries = folder.entries().values()
        except FolderError as error:
            raise AdapterRejected(f"{self._path}: {error.message}") from None
        files = [RemoteFile(e.name, e.size, link=not e.is_file) for e in entries if not e.is_folder]
        marks = {e.name: f"{e.size} {e.mtime_ns} {e.inode}" for e in entries}
        return Listing(tuple(files), tuple(e.name for e in entries if e.is_folder), state=state_of(marks))

    def read(self, file: RemoteFile, start: int) -> Generator[bytes, None, None]:
        """See Source."""
        try:
            with Folder.open(self._path) as folder, folder.file(file.name) as opened:
                if opened.size != file.size:
                    raise DataLoss(f"{file.name} changed while it was read; run the same command again")
                with open(opened.descriptor, "rb", closefd=False) as stream:
                    stream.seek(start)
                    while block := stream.read(HASH_BYTES):
                        yield block
        except FolderError as error:
            raise AdapterRejected(f"{self._path}: {error.where}: {error.message}") from None
