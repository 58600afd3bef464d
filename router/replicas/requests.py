"""A job on its way: which replica it is at, and where it goes if that one is lost."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace

from router.engine.base import Finished, Job
from router.engine.output import EventStream
from router.errors import RouterError, Unavailable
from router.replicas.messages import delta_of, error_of, finished_of, submit
from router.replicas.replica import FleetReplica
from router.types import FinishReason, Usage
from router.v1 import engine_pb2 as pb

log = logging.getLogger(__name__)

MOVES = 2  # to another replica; a job that ends every engine it meets must end itself


class RoutedJob:
    """A job that has sent no token goes on elsewhere when its replica is lost; one that has ends UNAVAILABLE.

    `stream` is what its caller reads. `on` sends it on its way again, and raises why that cannot be; `left`
    is called when it leaves its replica.
    """

    moves = True

    def __init__(self, job: Job, on: Callable[[RoutedJob], None], left: Callable[[RoutedJob], None]) -> None:
        """Raises InvalidRequest for a job that cannot travel."""
        self.job, self._on, self._left = job, on, left
        self._command = submit(job)
        self.stream = EventStream(lambda _: self.cancel(), lambda _: None)
        self.tried: set[str] = set()
        self.at: FleetReplica | None = None
        self.waits: Callable[[], object] | None = None  # while it is at no replica: stops what it waits for
        self.waited = False  # for its adapter, which a replica loaded or refused
        self.cancelled = False
        self._key = 0
        self._tokens = 0
        self._began = self._sent = time.monotonic()
        self._first = 0.0

    def go(self, replica: FleetReplica) -> None:
        """To this replica."""
        self.at, self._sent = replica, time.monotonic()
        self.tried.add(replica.name)
        where = {"response_id": self.job.request_id, "replica": replica.name}
        log.debug("goes to a replica", extra={"fields": where})
        if self.job.deadline is not None:  # in seconds that are left now
            self._command.submit.seconds_left = self.job.deadline - time.monotonic()
        self._key = replica.ask(self, self._command)

    def cancel(self) -> None:
        """Its caller has left, which its replica confirms."""
        if self.cancelled or self.stream.ended:
            return
        self.cancelled = True
        if self.at is not None:
            self.at.cancel(self._key)
        else:
            self.end(FinishReason.CANCELLED)

    def put(self, event: pb.EngineEvent) -> None:
        """Something came from its replica."""
        if event.HasField("delta"):
            self._first = self._first or time.monotonic()
            delta = delta_of(event.delta)
            self._tokens += delta.tokens
            self.stream.put(delta)
            return
        at = self.at.name if self.at is not None else ""
        self._leave()
        if event.HasField("finished"):
            end = finished_of(event.finished)
            if end.reason is FinishReason.CANCELLED and not self.cancelled:
                self._elsewhere(Unavailable(f"replica {at} has stopped: ask again"))
            else:
                self.stream.put(replace(end, usage=self._usage(end.usage)))
            return
        error = error_of(event.error)
        if isinstance(error, Unavailable):
            self._elsewhere(error)
        else:
            self.stream.put(error)

    def lost(self, why: str) -> None:
        """Its replica is lost."""
        self._leave()
        self._elsewhere(Unavailable(f"{why}: ask again"))

    def stop(self) -> None:
        """The edge ends."""
        self.end(FinishReason.CANCELLED)

    def end(self, reason: FinishReason) -> None:
        """Where no replica can say it any more."""
        self._leave()
        if not self.stream.ended:
            usage = Usage(prompt_tokens=len(self.job.tokens), completion_tokens=self._tokens)
            self.stream.put(Finished(reason, self._usage(usage)))

    def fail(self, error: RouterError) -> None:
        """It cannot go on."""
        self._leave()
        if not self.stream.ended:
            self.stream.put(error)

    def _elsewhere(self, error: Unavailable) -> None:
        if self.cancelled or self.job.background:
            self.end(FinishReason.CANCELLED)
        elif self._tokens:
            self.fail(Unavailable(f"{error.message} (the answer had begun)", error.retry_after))
        elif len(self.tried) > MOVES:
            self.fail(error)
        else:
            try:
                self._on(self)
            except RouterError as refused:
                self.fail(refused if not isinstance(refused, Unavailable) else error)

    def _leave(self) -> None:
        if self.waits is not None:
            stop, self.waits = self.waits, None
            stop()
        if self.at is not None:
            self._left(self)
            self.at = None

    def _usage(self, usage: Usage) -> Usage:
        """With times as they were at the edge, where the way is part of them."""
        now = time.monotonic()
        return replace(
            usage,
            queue_time=usage.queue_time + self._sent - self._began,
            time_to_first_token=(self._first or now) - self._began,
            total_time=now - self._began,
        )
