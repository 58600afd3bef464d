"""Which folder stands for which version, when folders change their minds or claim the same one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from router.registry.disk.reading import Examined
from router.types import AdapterRef


class Claims:
    """Folders in the order in which they came; the first one without a problem stands for its version."""

    def __init__(self) -> None:
        self._by_folder: dict[Path, Examined] = {}
        self._folders: dict[AdapterRef, list[Path]] = {}

    def get(self, folder: Path) -> Examined | None:
        """What a folder held when it was last examined."""
        return self._by_folder.get(folder)

    def put(self, examined: Examined) -> tuple[AdapterRef, AdapterRef | None]:
        """Take note of a folder; gives the version it stands for, and the one before if it was another.

        A folder that turned bad stands for what it stood for: bad files cannot say who they are.
        """
        folder = examined.found.place.folder
        before = self._by_folder.get(folder)
        if before is not None and examined.problem:
            examined = replace(examined, ref=before.ref, inspection=before.inspection)
        self._by_folder[folder] = examined
        if before is not None and before.ref == examined.ref:
            return examined.ref, None
        self._folders.setdefault(examined.ref, []).append(folder)
        if before is None:
            return examined.ref, None
        self._unclaim(before.ref, folder)
        return examined.ref, before.ref

    def drop(self, folder: Path) -> AdapterRef | None:
        """A folder is gone; returns the version it stood for."""
        examined = self._by_folder.pop(folder, None)
        if examined is None:
            return None
        self._unclaim(examined.ref, folder)
        return examined.ref

    def _unclaim(self, ref: AdapterRef, folder: Path) -> None:
        folders = self._folders[ref]
        folders.remove(folder)
        if not folders:
            del self._folders[ref]

    def claimants(self, ref: AdapterRef) -> list[Examined]:
        """Who claims a version: first the one that stands for it."""
        found = [self._by_folder[folder] for folder in self._folders.get(ref, ())]
        return sorted(found, key=lambda e: bool(e.problem))


def double_ref(ref: AdapterRef, number: int) -> AdapterRef:
    """Under what the `number`th refused double of a version is listed: as build metadata, so beside it."""
    mark = f"{'.' if '+' in ref.version else '+'}double.{number}"
    return AdapterRef(ref.name, ref.version[: 63 - len(mark)] + mark)
