"""What a server does with feedback: keeps it as far as server and client agree, for as long as it may."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from router.access.access import is_response_id
from router.access.clients import Client
from router.errors import (
    ConfigError,
    FailedPrecondition,
    NotFound,
    NotSaved,
    Overloaded,
    StoreDown,
    Unavailable,
)
from router.feedback.model import VALUES, Feedback, Verdict
from router.feedback.recent import AnswersGiven, GivenAnswer
from router.feedback.store import FeedbackStore
from router.types import Keeping, weaker
from router.units import is_missing, unit_hash

log = logging.getLogger(__name__)
T = TypeVar("T")
MOST_WAITING = 64  # calls that wait for the database
DAY = 86_400.0
TIDY_SECONDS, TIDY_ROWS = 3600.0, 500  # old rows are removed after so long, or so much feedback
ERASE_SECONDS = 5.0  # between two attempts to erase deleted texts, while another program keeps them
FORGOTTEN = (
    ": no answer of yours that the server still knows; it remembers the latest ones since it started. Send "
    "`answered_by` with the feedback, and where texts are kept also what was asked and the answer"
)
NOT_OF_THIS_CLIENT = "nothing is kept of this client: `feedback` of its entry in the clients file is off"


@dataclass(frozen=True, slots=True)
class FeedbackRequest:
    """Feedback by a caller. `adapter` and the rest say of the answer what the server may have forgotten."""

    response_id: str
    verdict: Verdict
    corrected: str = ""
    comment: str = ""
    adapter: str = ""
    version: str = ""
    prompt: str = ""
    answer: str = ""
    unit: str = ""
    should_have_been: str = ""  # name of an adapter, or base


@dataclass(frozen=True, slots=True)
class Recorded:
    """What became of feedback."""

    kept: Keeping
    replaced: bool


class FeedbackRecorder:
    """Lives on one event loop; a thread of its own writes. `days` is how long feedback is kept.

    It calls `outcome(response_id, value)` with each feedback that it kept, for experiments.
    """

    def __init__(
        self,
        store: FeedbackStore,
        keeping: Keeping,
        days: int,
        outcome: Callable[[str, float], None] = lambda *_: None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.store, self.answers = store, AnswersGiven(keeping)
        self.days, self._outcome, self._now = days, outcome, now
        self._writer = ThreadPoolExecutor(1, "feedback")
        self._waiting = 0
        self._since_tidy, self._tidy_now = 0, asyncio.Event()
        self._erased = True
        self.counts: Counter[tuple[Verdict, Keeping]] = Counter()  # by what it says and what was kept

    async def record(self, request: FeedbackRequest, client: Client) -> Recorded:
        """What was kept, once it is durable.

        Raises FailedPrecondition where nothing is kept of the client, NotFound for an answer that is not its
        tenant's or not known any more, Overloaded, and NotSaved.
        """
        may = weaker(self.answers.keeping, client.feedback)
        if may == "off":
            raise FailedPrecondition(NOT_OF_THIS_CLIENT)
        recalled = self.answers.recent.get(request.response_id, client.tenant)
        if recalled is None and not is_response_id(request.response_id, client.tenant):
            raise NotFound("response", request.response_id, FORGOTTEN)
        one = self._feedback(request, client.tenant, recalled, may == "texts")
        put = partial(self.store.put, one, recalled is not None, may == "texts")
        stored = await self._written(put)
        if stored is None:
            raise NotFound("response", request.response_id, FORGOTTEN)
        one, replaced = stored
        kept: Keeping = "texts" if one.has_texts else "labels"
        self.counts[one.verdict, kept] += 1
        self._outcome(one.response_id, VALUES[one.verdict])
        self._since_tidy += 1
        if self._since_tidy >= TIDY_ROWS:
            self._tidy_now.set()
        return Recorded(kept, replaced)

    async def read(self, work: Callable[[FeedbackStore], T]) -> T:
        """What `work` reads of the store, in a thread. Raises Unavailable."""
        try:
            return await asyncio.to_thread(work, self.store)
        except (StoreDown, ConfigError) as error:
            log.error("feedback could not be read: %s", error.message)
            raise Unavailable("the feedback could not be read") from None

    async def delete(self, unit: str, tenant: str | None) -> int:
        """Delete what a unit (its hash) sent, what a tenant sent, or both, here in memory, too, and erase it
        from the disk; what another program's reading keeps there is erased later. Raises NotSaved."""

        def gone(owner: str, one: GivenAnswer) -> bool:
            return tenant in (None, owner) and unit in ("", hashed(one.unit))

        self.answers.recent.forget(gone)
        deleted = await self._written(partial(self.store.delete, unit, tenant))
        try:
            await self._written(self._erase)
        finally:
            if not self._erased:
                self._tidy_now.set()
        return deleted

    async def follow(self) -> None:
        """Delete in the background what is too old or too much; does not end."""
        while True:
            self._since_tidy = 0
            self._tidy_now.clear()
            try:
                await self._written(self._tidy)
            except Unavailable as error:
                log.warning("old feedback is deleted later: %s", error.message)
            try:
                async with asyncio.timeout(TIDY_SECONDS if self._erased else ERASE_SECONDS):
                    await self._tidy_now.wait()
            except TimeoutError:
                pass

    def _tidy(self) -> None:
        gone = self.store.expire(self._now() - self.days * DAY) + self.store.trim()
        if gone:
            log.info("%d rows of old feedback are deleted", gone)
        self._erase()

    def _erase(self) -> None:
        before, self._erased = self._erased, False
        try:
            self._erased = self.store.erase()
        except StoreDown as error:
            log.warning("deleted feedback is erased from the disk later: %s", error.message)
            return
        if before and not self._erased:
            log.warning(
                "deleted feedback stays in the database's log while another program reads the database"
            )

    def close(self) -> None:
        """Write what is left."""
        self._writer.shutdown()
        self.store.close()

    def _feedback(
        self, request: FeedbackRequest, tenant: str, recalled: GivenAnswer | None, texts: bool
    ) -> Feedback:
        given = recalled or GivenAnswer(request.adapter, request.version, "", request.unit)
        one = Feedback(
            request.response_id,
            self._now(),
            tenant,
            hashed(given.unit),
            given.adapter,
            given.version,
            request.verdict,
            digest=given.digest,
            should_have_been=request.should_have_been,
        )
        if not texts:
            return one
        sent = (("user", request.prompt),) if request.prompt else ()
        return replace(
            one,
            messages=given.messages or sent,
            answer=given.answer if given.answer is not None else request.answer or None,
            corrected=request.corrected or None,
            comment=request.comment,
        )

    async def _written(self, work: Callable[[], T]) -> T:
        if self._waiting >= MOST_WAITING:
            raise Overloaded(f"{self._waiting} calls wait for the database already", bound="feedback")
        self._waiting += 1
        writing = asyncio.get_running_loop().run_in_executor(self._writer, work)
        writing.add_done_callback(self._done)
        try:
            return await asyncio.shield(writing)
        except (StoreDown, ConfigError) as error:
            log.error("feedback could not be written: %s", error.message)
            raise NotSaved("the feedback could not be written; send it again") from None

    def _done(self, writing: asyncio.Future[T]) -> None:
        """Called for a call whose caller has left, too."""
        self._waiting -= 1
        if not writing.cancelled():
            writing.exception()


def hashed(unit: str) -> str:
    """The pseudonym of a unit; "" where there is none."""
    return "" if is_missing(unit) else unit_hash(unit)
