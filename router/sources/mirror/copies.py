"""The folder that servers watch: what was mirrored, each adapter whole or not there at all. It is the
mirror's own: what the store does not have goes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from router.sources.origin import FILE_NAME, pin_in
from router.sources.staging import FILES, Staging

ADAPTERS = "adapters"


class Copies:
    """`folder`/adapters, and a place beside it for what is not whole."""

    def __init__(self, folder: Path, source: str) -> None:
        self.root, self._aside, self._source = folder / ADAPTERS, folder / "staging", source

    def pins(self) -> dict[str, str]:
        """What is here, by place, with the pin that it was brought with; '' for what was not brought.

        What was left half done goes. For a caller that is alone here.
        """
        shutil.rmtree(self._aside, ignore_errors=True)
        for folder in (self.root, self._aside):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return {place: pin_in(self.root / place, self._source) for place in self._places()}

    def _places(self) -> Iterator[str]:
        for top in _folders(self.root):
            inner = [] if (self.root / top / FILE_NAME).exists() else list(_folders(self.root / top))
            yield from (f"{top}/{name}" for name in inner)
            if not inner:
                yield top

    def put(self, place: str, fill: Callable[[Path], None]) -> None:
        """Have `fill` write a folder, and put it there, in one step, in the stead of what was there."""
        staging = Staging(self._aside / uuid4().hex)
        staging.files.mkdir(parents=True)
        try:
            fill(staging.files)
            target = self.root / place
            staging.publish(target, replace=os.path.lexists(target))
        finally:
            shutil.rmtree(staging.folder, ignore_errors=True)

    def remove(self, place: str) -> None:
        """Take it out in one step."""
        target = self.root / place
        aside = self._aside / uuid4().hex
        aside.mkdir(parents=True)
        try:
            target.rename(aside / FILES)
        except FileNotFoundError:
            return
        shutil.rmtree(aside, ignore_errors=True)
        if target.parent != self.root and not any(target.parent.iterdir()):
            with suppress(OSError):  # another version came just now
                target.parent.rmdir()


def _folders(path: Path) -> list[str]:
    with os.scandir(path) as entries:
        return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
