"""Folders that claim one version: with the same contents fine, else the later ones are refused."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from pathlib import Path

from router.errors import RouterError
from router.registry.disk.reading import Claims, Examined, Reader, read_whole
from router.registry.index import Index
from router.registry.options import Workers
from router.registry.record import Record
from router.types import AdapterRef


class Conflicts:
    """Compares such folders in a task of its own: it reads both, and there may be many."""

    def __init__(self, claims: Claims, index: Index, reader: Reader, workers: Workers) -> None:
        self._claims, self._index, self._reader, self._workers = claims, index, reader, workers
        self._shown: dict[tuple[AdapterRef, Path], Record] = {}
        self._due: dict[AdapterRef, None] = {}
        self._task: asyncio.Task[None] | None = None

    def check(self, refs: Iterable[AdapterRef]) -> None:
        """Look at these versions again, soon."""
        shown = {ref for ref, _ in self._shown}
        self._due.update((r, None) for r in refs if len(self._claims.claimants(r)) > 1 or r in shown)
        if self._due and (self._task is None or self._task.done()):
            self._task = asyncio.get_running_loop().create_task(self._work())

    async def close(self) -> None:
        """Stop comparing."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _work(self) -> None:
        while self._due:
            ref = next(iter(self._due))
            del self._due[ref]
            claimants = self._claims.claimants(ref)
            problems = [(other, await self._problem(claimants[0], other)) for other in claimants[1:]]
            if any(self._claims.get(e.found.place.folder) is not e for e in claimants):
                self._due[ref] = None  # changed meanwhile
            else:
                self._show(ref, [(other, text) for other, text in problems if text])

    async def _problem(self, first: Examined, other: Examined) -> str:
        if other.problem:
            return other.problem
        try:
            mine = await self._workers.run(read_whole, self._reader, other.found)
            theirs = await self._workers.run(read_whole, self._reader, first.found)
        except RouterError as error:
            return error.message
        if mine.artifact.digest == theirs.artifact.digest:
            return ""
        mine_in, theirs_in = other.found.place.folder.name, first.found.place.folder.name
        return (
            f"folder {mine_in!r} claims {other.ref}, which folder {theirs_in!r} holds with other contents; "
            "give one of them another name or version"
        )

    def _show(self, ref: AdapterRef, problems: Sequence[tuple[Examined, str]]) -> None:
        folders = {e.found.place.folder for e, _ in problems}
        for key in [k for k in self._shown if k[0] == ref and k[1] not in folders]:
            self._index.remove(self._shown.pop(key))
        for examined, text in problems:
            key = (ref, examined.found.place.folder)
            shown = self._shown.get(key)
            if shown is None:
                self._shown[key] = self._new(ref, examined, text)
            else:
                shown.conflict_changed(text)

    def _new(self, ref: AdapterRef, examined: Examined, text: str) -> Record:
        number = 1
        while self._index.get(duplicate_ref(ref, number)) is not None:
            number += 1
        record = Record(
            duplicate_ref(ref, number),
            examined.found,
            examined.inspection,
            self._index.changed,
            problem=text,
            duplicate=True,
        )
        self._index.add(record)
        return record


def duplicate_ref(ref: AdapterRef, number: int) -> AdapterRef:
    """Under what the `number`th refused duplicate of a version is listed: as build metadata, so beside it."""
    mark = f"{'.' if '+' in ref.version else '+'}double.{number}"
    return AdapterRef(ref.name, ref.version[: 63 - len(mark)] + mark)
