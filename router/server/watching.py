"""Watchers: experiments and plugins learn when an answer begins and how it ends."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from router.engine.base import Buffered, Delta, Finished, Generation, buffered
from router.errors import RouterError
from router.ports import End, Stage, Watcher
from router.types import FinishReason, Usage

log = logging.getLogger(__name__)


@contextmanager
def watching(
    watchers: Sequence[Watcher], generation: Generation, stopped: Callable[[], str]
) -> Iterator[Buffered]:
    """The generation; the watchers hear when it begins, and at the end of the block how it ended.

    `stopped` names the reason for which a cancellation would not be the user's, or ''.
    """
    if not watchers:
        yield buffered(generation)
        return
    watched = Watched(generation, watchers)
    try:
        yield watched
    except BaseException as error:
        watched.end(error, stopped())
        raise
    watched.end(None)


def how_it_failed(error: BaseException | None, stopped: str) -> tuple[str, bool]:
    """The reason of the error that ended a request, or that its user has left.

    A cancellation is the user's unless `stopped` names another reason.
    """
    if error is None:
        return "", False
    if isinstance(error, asyncio.CancelledError) and not stopped:
        return "", True
    return stopped or (error.reason if isinstance(error, RouterError) else type(error).__name__), False


class Watched:
    """The `Buffered` protocol around a generation; `end` must be called once, whatever happened.

    A watcher that raises is logged, and changes nothing for the user.
    """

    def __init__(self, generation: Generation, watchers: Sequence[Watcher]) -> None:
        self._source, self._watchers = buffered(generation), watchers
        self._submitted = time.monotonic()
        self._first = 0.0
        self._began = False
        self._read: list[Delta | Finished] = []
        self._finished: Finished | None = None

    async def wait(self, least: int) -> None:
        """As the generation does."""
        await self._source.wait(least)

    def ready(self) -> Sequence[Delta | Finished]:
        """The same events."""
        found = self._source.ready()
        if found:
            self._read += found
            if isinstance(found[0], Delta):
                self._begin()
            if isinstance(found[-1], Finished):
                self._finish(found[-1])
        return found

    def cancel(self) -> None:
        """Ask the engine to drop it."""
        self._source.cancel()

    def end(self, error: BaseException | None, stopped: str = "") -> None:
        """Tell the watchers. A cancellation is the user's unless `stopped` names another reason."""
        finished = self._finished
        failed, left = how_it_failed(error, stopped)
        if finished is not None and finished.reason in (FinishReason.STOP, FinishReason.LENGTH):
            left, failed = False, ""  # all was there; what came after is not the answer's
        whole = finished is not None and not failed
        end = End(
            finished.reason if finished is not None and whole else None,
            "".join([delta.text for delta in self._deltas]),
            finished.usage if finished is not None else self._so_far(),
            failed,
            left,
            (Stage.STREAM if self._began else Stage.PREFILL) if failed or left else None,
        )
        self._each(lambda watcher: watcher.ended(end))

    def _begin(self) -> None:
        if self._began:
            return
        self._began, self._first = True, time.monotonic()
        self._each(lambda watcher: watcher.began())

    def _finish(self, event: Finished) -> None:
        self._finished = event
        if event.usage.completion_tokens or event.reason in (FinishReason.STOP, FinishReason.LENGTH):
            self._begin()  # an answer may be one token that has no text

    def _each(self, tell: Callable[[Watcher], None]) -> None:
        for watcher in self._watchers:
            try:
                tell(watcher)
            except Exception:
                log.exception("a watcher failed; the answer goes on")

    @property
    def _deltas(self) -> list[Delta]:
        return [event for event in self._read if isinstance(event, Delta)]

    def _so_far(self) -> Usage:
        now = time.monotonic()
        return Usage(
            completion_tokens=sum(delta.tokens for delta in self._deltas),
            time_to_first_token=(self._first or now) - self._submitted,
            total_time=now - self._submitted,
        )
