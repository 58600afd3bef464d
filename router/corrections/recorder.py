"""What a server does with corrections: remembers its latest answers, and records who should have given
them.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from router.access.access import is_response_id
from router.access.clients import Client
from router.corrections.store import MAX_TEXT, Correction, CorrectionStore, StoredCorrections
from router.errors import FailedPrecondition, NotFound, NotSaved, Overloaded, Unavailable
from router.feedback.recent import OVERHEAD, RecentAnswers
from router.types import Decision, Keeping, Request, weaker

log = logging.getLogger(__name__)
MOST_WAITING = 64  # corrections on their way to the disk
FORGOTTEN = (
    ": no answer of yours that the server still knows; it remembers the latest ones since it started. Where "
    "it keeps texts, send the text with the correction"
)
NOT_OF_THIS_CLIENT = "nothing is kept of this client: `corrections` of its entry in the clients file is off"


@dataclass(frozen=True, slots=True)
class RecentAnswer:
    """One answer. `chosen` "" is the base, None several adapters at once; `text` None was not kept."""

    chosen: str | None
    reason: str
    confidence: float
    text: str | None = None

    @property
    def size(self) -> int:
        """Bytes of memory, about."""
        return OVERHEAD + (sys.getsizeof(self.text) if self.text is not None else 0)


@dataclass(frozen=True, slots=True)
class CorrectionRequest:
    """A correction by a caller: which adapter should have answered ("" the base), and perhaps the text."""

    response_id: str
    label: str
    text: str = ""


class Corrections:
    """Lives on one event loop; a thread of its own writes. `keeping` is the most that is stored of any
    client; the entry of a client may say less."""

    def __init__(
        self,
        store: CorrectionStore,
        keeping: Keeping,
        recent: RecentAnswers[RecentAnswer] | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._store, self.keeping, self._now = store, keeping, now
        self._recent: RecentAnswers[RecentAnswer] = recent if recent is not None else RecentAnswers()
        self._writer = ThreadPoolExecutor(1, "corrections")
        self._waiting = 0
        self.kept: Counter[tuple[Keeping, bool]] = (
            Counter()
        )  # by what, and whether another should have answered

    def remember(self, request: Request, decision: Decision, client: Client) -> None:
        """An answer is being given. Of a text too long for an example only the decision is kept."""
        may = weaker(self.keeping, client.corrections)
        if may == "off":
            return
        text = request.text if may == "texts" and len(request.text) <= MAX_TEXT else None
        chosen = decision.adapter.name if decision.adapter is not None else None if decision.mixture else ""
        answered = RecentAnswer(chosen, decision.reason.value, decision.confidence, text)
        self._recent.add(request.request_id, request.tenant, answered)

    async def record(self, request: CorrectionRequest, client: Client) -> Keeping:
        """What it was kept with, once it is durable.

        Raises FailedPrecondition where nothing is kept of the client, NotFound for an answer that is not its
        tenant's or not known any more, Overloaded, and NotSaved.
        """
        may = weaker(self.keeping, client.corrections)
        if may == "off":
            raise FailedPrecondition(NOT_OF_THIS_CLIENT)
        correction = self._correction(request, client.tenant, may == "texts")
        await self._write(correction)
        kept: Keeping = "texts" if correction.text else "labels"
        self.kept[kept, correction.wrong] += 1
        return kept

    async def read(self, tenant: str | None = None) -> StoredCorrections:
        """What is on the disk, of all tenants or of one, the oldest first. Raises Unavailable."""
        try:
            return await asyncio.to_thread(self._store.read, tenant)
        except OSError as error:
            log.error("corrections could not be read", exc_info=error)
            raise Unavailable(f"the corrections could not be read: {error.strerror}") from None

    def close(self) -> None:
        """Write what is left."""
        self._writer.shutdown()

    def _correction(self, request: CorrectionRequest, tenant: str, with_text: bool) -> Correction:
        known = self._recent.get(request.response_id, tenant)
        if known is None:
            if not (with_text and request.text and is_response_id(request.response_id, tenant)):
                raise NotFound("response", request.response_id, FORGOTTEN)
            return Correction(
                self._now(), request.response_id, request.label, text=request.text, tenant=tenant
            )
        text = (known.text or request.text) if with_text else ""
        return Correction(
            self._now(),
            request.response_id,
            request.label,
            known.chosen,
            known.reason,
            known.confidence,
            text,
            tenant,
        )

    async def _write(self, correction: Correction) -> None:
        if self._waiting >= MOST_WAITING:
            text = f"{self._waiting} corrections wait for the disk already"
            raise Overloaded(text, bound="corrections")
        self._waiting += 1
        writing = asyncio.get_running_loop().run_in_executor(self._writer, self._store.append, correction)
        writing.add_done_callback(self._written)
        try:
            await asyncio.shield(writing)
        except OSError as error:
            log.error("a correction could not be kept", exc_info=error)
            raise NotSaved(f"the correction could not be written: {error.strerror}") from None

    def _written(self, writing: asyncio.Future[None]) -> None:
        """Called for one whose caller has left, too."""
        self._waiting -= 1
        if not writing.cancelled():
            writing.exception()
