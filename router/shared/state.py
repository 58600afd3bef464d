"""Documents that all edges have: known here, changed in the database, followed within a second.

What was known last goes on while the database is away. A change goes there first and holds afterwards; one
that was made against another state than the present one is refused.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from router.errors import ChangedElsewhere, ConfigError, SharedDown
from router.reread import problem_of
from router.shared.documents import Beat, SharedDocument, SharedTable, Totals

log = logging.getLogger(__name__)
LOOK_SECONDS = 1.0
START_SECONDS = 5.0
AWAY = "what edges share cannot be read or changed"


@dataclass(eq=False, slots=True)
class _SharedPart:
    """Who has documents under a prefix."""

    prefix: str
    own: Callable[[], Mapping[str, Any]]
    agree: Callable[[Collection[str]], None]
    joined: bool = False
    failed: set[str] = field(
        default_factory=set
    )  # keys that it could not take over; tried again at every look
    problem: str = ""  # why


class SharedState:
    """Implements router.ports.SharedDocuments. Lives on one event loop.

    `used` gives what clients have used here; `others` gets what was used at all other edges.
    """

    def __init__(self, table: SharedTable, look_seconds: float = LOOK_SECONDS) -> None:
        self._table, self._look_seconds = table, look_seconds
        self._known: dict[str, SharedDocument] = {}
        self._revision = -1  # the last that was read; nothing was yet
        self._parts: list[_SharedPart] = []
        self._task: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()
        self._since = 0.0  # when it was seen last, seconds since 1970
        self.problem = "it was not reached yet"
        self.edges = 1
        self.used: Callable[[], Totals] = dict
        self.others: Callable[[Sequence[Beat]], None] = lambda _: None

    # -- life

    async def start(self) -> None:
        """Read what is there, and follow it. A database that is away stops nobody: what is known here goes
        on. Raises ConfigError where it can never work.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(START_SECONDS):
                await self._round()
        if self.problem:
            log.error("%s (%s); this edge starts with what it knows", AWAY, self.problem)
        self._task = asyncio.get_running_loop().create_task(self._follow(), name="shared state")

    async def close(self) -> None:
        """Say that this edge goes."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            try:
                await self._table.leave()
            except SharedDown as error:
                log.info("the other edges notice by themselves that this one goes: %s", error.message)

    @property
    def flaws(self) -> list[str]:
        """What is wrong, for a person."""
        parts = [part.problem for part in self._parts if part.problem]
        if not self.problem:
            return parts
        since = f" since {time.strftime('%H:%M:%S', time.localtime(self._since))}" if self._since else ""
        return [f"{AWAY}{since}: {self.problem}; what was known last holds, and no change is taken", *parts]

    # -- documents

    def get(self, key: str) -> Any:
        """As the port says."""
        row = self._known.get(key)
        return None if row is None else row.value

    def revision(self, key: str) -> int:
        """As the port says."""
        row = self._known.get(key)
        return 0 if row is None else row.revision

    def keys(self, prefix: str) -> list[str]:
        """As the port says."""
        return [key for key in self._known if key.startswith(prefix)]

    def join(
        self, prefix: str, own: Callable[[], Mapping[str, Any]], agree: Callable[[Collection[str]], None]
    ) -> None:
        """As the port says."""
        part = _SharedPart(prefix, own, agree)
        self._parts.append(part)
        if self.keys(prefix):
            self._join(part)
        else:
            self._hurry.set()  # if it is empty, this edge fills it

    async def put(self, key: str, value: Any) -> None:
        """As the port says."""
        expected = self.revision(key)
        if self.problem:
            raise SharedDown(f"{AWAY} ({self.problem}): bring it back, then try again")
        try:
            revision = await self._table.put(key, value, expected)
        except SharedDown as error:
            self._hurry.set()
            raise SharedDown(
                f"{AWAY} ({error.message}): look what holds when it is back, then try again"
            ) from error
        if revision is None:
            self._hurry.set()
            raise ChangedElsewhere(
                f"{key.replace('/', ' ', 1)} was changed at another edge meanwhile: look at what holds now, "
                "then try again"
            )
        if revision > self.revision(key):
            self._known[key] = SharedDocument(key, revision, value, "")

    # -- following

    async def _follow(self) -> None:
        while True:
            self._hurry.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._look_seconds):
                    await self._hurry.wait()
            try:
                await self._round()
            except Exception as error:
                problem = problem_of(error)
                if problem != self.problem:
                    log.error("following what edges share failed; it is tried again", exc_info=error)
                self._went(problem)

    async def _round(self) -> None:
        try:
            if self.problem:
                await self._table.open()
            await self._look()
        except SharedDown as error:
            self._went(error.message)
            await self._table.close()
        except ConfigError as error:
            if self._task is None:  # the start: who set it up can mend it
                raise
            self._went(error.message)
            await self._table.close()
        else:
            self._came()

    async def _look(self) -> None:
        beats = await self._table.beat(self.used())
        if len(beats) + 1 != self.edges:
            self.edges = len(beats) + 1
            log.info("%d edges share this state", self.edges)
        self.others(beats)
        rows, last = await self._table.since(self._revision)
        if last < self._revision:
            await self._set_back()
        else:
            self._take(rows)
        for part in self._parts:
            if not part.joined:
                await self._seed(part)

    async def _set_back(self) -> None:
        """The database was restored from a backup, or is another one: what it says counts."""
        log.warning("the database of what edges share was set back: it counts as it is now")
        before, self._known, self._revision = self._known, {}, -1
        rows, _ = await self._table.since(-1)
        for part in self._parts:
            part.joined = False
        self._take(rows, before)

    def _take(self, rows: Sequence[SharedDocument], gone: Collection[str] = ()) -> None:
        new = [row for row in rows if row.revision > self.revision(row.key)]
        self._known |= {row.key: row for row in new}
        self._revision = max((row.revision for row in rows), default=self._revision)
        changed = dict.fromkeys([*(row.key for row in new), *gone])
        for part in self._parts:
            mine = [key for key in changed if key.startswith(part.prefix)]
            if part.joined:
                self._agree(part, mine)

    def _agree(self, part: _SharedPart, keys: Collection[str]) -> None:
        """Hand over keys that changed, and those that failed before. Other parts go on if this one fails."""
        keys = [*dict.fromkeys([*keys, *part.failed])]
        if not keys:
            return
        try:
            part.agree(keys)
        except Exception as error:
            problem = f"what edges share of {part.prefix} is not taken over: {problem_of(error)}"
            if problem != part.problem:
                log.error("a shared document cannot be used; what was known before holds", exc_info=error)
            part.failed, part.problem = set(keys), problem
        else:
            part.failed, part.problem = set(), ""

    async def _seed(self, part: _SharedPart) -> None:
        """The first edge gives what it has; one that comes later takes what there is."""
        if not self.keys(part.prefix):
            own = part.own()
            if own and await self._table.seed(part.prefix, own):
                log.info("edges share now what was known here: %d of %s", len(own), part.prefix)
            rows, _ = await self._table.since(self._revision)
            self._take(rows)
        self._join(part)

    def _join(self, part: _SharedPart) -> None:
        part.joined = True
        self._agree(part, list(dict.fromkeys([*self.keys(part.prefix), *part.own()])))

    def _went(self, problem: str) -> None:
        if not self.problem:
            log.error("%s: %s; what was known last holds, and no change is taken", AWAY, problem)
        self.problem = problem

    def _came(self) -> None:
        if self.problem and self._since:
            log.info("what edges share can be read and changed again")
        self.problem, self._since = "", time.time()
