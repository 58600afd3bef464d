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
from typing import Any

from router.errors import ChangedElsewhere, ConfigError, SharedDown
from router.reread import problem_of
from router.shared.documents import Beat, SharedDocument, SharedTable, Totals

log = logging.getLogger(__name__)
LOOK_SECONDS = 1.0
START_SECONDS = 5.0
AWAY = "what edges share cannot be read or changed"


class SharedState:
    """Implements router.ports.SharedDocuments. Lives on one event loop.

    `used` gives what clients have used here; `others` gets what was used at all other edges.
    """

    def __init__(self, table: SharedTable, look_seconds: float = LOOK_SECONDS) -> None:
        self._table, self._look_seconds = table, look_seconds
        self._known: dict[str, SharedDocument] = {}
        self._revision = -1  # the last that was read; nothing was yet
        self._own: Callable[[], Mapping[str, Any]] | None = None  # who joined: what it has itself
        self._agree: Callable[[Collection[str]], None] = lambda _: None
        self._joined = False
        self._failed: set[str] = set()  # keys that could not be taken over; tried again at every look
        self._failure = ""  # why
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
        failure = [self._failure] if self._failure else []
        if not self.problem:
            return failure
        since = f" since {time.strftime('%H:%M:%S', time.localtime(self._since))}" if self._since else ""
        return [f"{AWAY}{since}: {self.problem}; what was known last holds, and no change is taken", *failure]

    # -- documents

    def get(self, key: str) -> Any:
        """As the port says."""
        row = self._known.get(key)
        return None if row is None else row.value

    def known(self) -> Collection[str]:
        """As the port says."""
        return self._known.keys()

    def join(self, own: Callable[[], Mapping[str, Any]], agree: Callable[[Collection[str]], None]) -> None:
        """As the port says."""
        self._own, self._agree = own, agree
        if self._known:
            self._join(own)
        else:
            self._hurry.set()  # if it is empty, this edge fills it

    async def put(self, key: str, value: Any) -> None:
        """As the port says."""
        known = self._known.get(key)
        if self.problem:
            raise SharedDown(f"{AWAY} ({self.problem}): bring it back, then try again")
        try:
            revision = await self._table.put(key, value, known.revision if known is not None else 0)
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
        if (now := self._known.get(key)) is None or revision > now.revision:
            self._known[key] = SharedDocument(key, revision, value)

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
        if (found := await self._table.changed(self._revision)) is not None:
            self._take(found)
        if self._own is not None and not (self._joined and self._known):
            await self._seed(self._own)
        elif self._failed:
            self._hand_over(())

    def _take(self, found: dict[str, SharedDocument]) -> None:
        """All that there is now. A database that was restored from a backup, or is another one, counts."""
        last, before = max((one.revision for one in found.values()), default=0), self._known
        if last < self._revision:
            log.warning("the database of what edges share was set back: it counts as it is now")
        else:  # what was put here since it was read is newer
            found |= {key: one for key, one in before.items() if one.revision > last}
        self._known, self._revision = found, last
        if self._joined:
            self._hand_over([key for key in before | found if before.get(key) != found.get(key)])

    def _hand_over(self, keys: Collection[str]) -> None:
        """Keys that changed, and those that failed before."""
        keys = dict.fromkeys([*keys, *self._failed]).keys()
        if not keys:
            return
        try:
            self._agree(keys)
        except Exception as error:
            failure = f"what edges share is not taken over: {problem_of(error)}"
            if failure != self._failure:
                log.error("a shared document cannot be used; what was known before holds", exc_info=error)
            self._failed, self._failure = set(keys), failure
        else:
            self._failed, self._failure = set(), ""

    async def _seed(self, own: Callable[[], Mapping[str, Any]]) -> None:
        """The first edge gives what it has; one that comes later takes what there is."""
        if not self._known and (values := own()):
            if await self._table.seed(values):
                log.info("edges share now what was known here: %d documents", len(values))
            if (found := await self._table.changed(self._revision)) is not None:
                self._take(found)
        if not self._joined:
            self._join(own)

    def _join(self, own: Callable[[], Mapping[str, Any]]) -> None:
        self._joined = True
        self._hand_over([*self._known, *own()])

    def _went(self, problem: str) -> None:
        if not self.problem:
            log.error("%s: %s; what was known last holds, and no change is taken", AWAY, problem)
        self.problem = problem

    def _came(self) -> None:
        if self.problem and self._since:
            log.info("what edges share can be read and changed again")
        self.problem, self._since = "", time.time()
