"""Reading weights for their sha256 only: a report counts before the adapter is ever loaded."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from router.registry.disk.places import REPORT
from router.registry.disk.reading import unchanged
from router.registry.format import limits
from router.registry.format.findings import Findings
from router.registry.format.folder import Folder, FolderError, find_layout
from router.registry.format.safetensors_header import WEIGHTS
from router.registry.gate.judging import Report, ReportError, parse_report
from router.registry.options import Workers
from router.registry.record import Record

# What the gate reads from disk: a folder's report, and the sha256 of weights that were not loaded yet.


def read_report(path: Path) -> Report | str | None:
    """The report of an adapter folder, or why it cannot be used, or None if there is none. Blocks."""
    try:
        with Folder.open(path) as folder:
            if folder.entry(REPORT) is None:
                return None
            return parse_report(folder.read(REPORT, limits.REPORT_BYTES))
    except FolderError as error:
        return error.message
    except ReportError as error:
        return str(error)


def weights_sha256(path: Path) -> str:
    """sha256 of the weights file of an adapter folder, in hex. Blocks; raises FolderError."""
    with Folder.open(path) as folder:
        nested = find_layout(folder, Findings()).nested
        if not nested:
            return _sha256(folder)
        with folder.subfolder(nested) as inner:
            return _sha256(inner)


def _sha256(folder: Folder) -> str:
    with folder.file(WEIGHTS) as file:
        return file.sha256()


log = logging.getLogger(__name__)


class Scale:
    """Weighs versions one after another in a task of its own; tells `weighed` of each."""

    def __init__(self, workers: Workers, weighed: Callable[[Record], None]) -> None:
        self._workers, self._weighed = workers, weighed
        self._due: dict[Record, None] = {}
        self._task: asyncio.Task[None] | None = None

    def ask(self, record: Record) -> None:
        """Weigh it soon. One that was not examined yet is asked for again when it was."""
        if record.live is not None or record.quarantined:  # a load weighs by itself
            return
        if record.inspection is None or not record.inspection.fingerprint:
            return
        self._due[record] = None
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._work())

    async def settled(self, timeout: float) -> bool:
        """Wait until nothing is due; False if that takes longer than `timeout` seconds."""
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=timeout)
        return self._task is None or self._task.done()

    async def close(self) -> None:
        """Stop."""
        self._due.clear()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _work(self) -> None:
        while self._due:
            record = next(iter(self._due))
            del self._due[record]
            if not record.removed and not record.weights_sha256:
                await self._weigh(record)

    async def _weigh(self, record: Record) -> None:
        found = record.found
        try:
            weights = await self._workers.run(weights_sha256, found.place.folder)
            same = await self._workers.run(unchanged, found)
        except FolderError as error:
            log.info("the weights of adapter %s are not compared with its report: %s", record.ref, error)
            return
        if same and not record.removed:
            record.weighed = (found.stamp, weights)
            self._weighed(record)
