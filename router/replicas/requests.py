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

MOVES = 2  # from replicas that were lost; a job that ends every engine it meets must end itself


class RoutedJob:
    """A job that has sent no token goes on elsewhere when its replica is lost or refuses it; one that has
    ends UNAVAILABLE.

    `stream` is what its caller reads. `on` sends it on its way again, and raises why that cannot be.
    """

    def __init__(
        self, job: Job, adapter: pb.EngineCommand.Load | None, on: Callable[[RoutedJob], None]
    ) -> None:
        """Raises InvalidRequest for a job that cannot travel."""
        self.job, self.adapter, self._on = job, job.adapter, on
        self._command = submit(job, adapter)
        self.stream = EventStream(lambda _: self.cancel(), lambda _: None)
        self.tried: set[str] = set()
        self.at: FleetReplica | None = None
        self.cancelled = False
        self._key = self._losses = self._tokens = 0
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
        replica.jobs[self.job.background] += 1
        self._key = replica.ask(self, self._command)

    def cancel(self) -> None:
        """Its caller has left, which its replica confirms."""
        if not self.cancelled and self.at is not None:
            self.cancelled = True
            self.at.cancel(self._key)

    def put(self, event: pb.EngineEvent) -> None:
        """Something came from its replica."""
        if event.HasField("delta"):
            self._first = self._first or time.monotonic()
            delta = delta_of(event.delta)
            self._tokens += delta.tokens
            self.stream.put(delta)
            return
        name = self._leave()
        if event.HasField("finished"):
            end = finished_of(event.finished)
            if end.reason is FinishReason.CANCELLED and not self.cancelled:
                self._losses += 1
                self._elsewhere(Unavailable(f"replica {name} has stopped: ask again"))
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
        self._losses += 1
        self._elsewhere(Unavailable(f"{why}: ask again"))

    def stop(self) -> None:
        """The edge ends."""
        self._leave()
        self._cancelled()

    def _elsewhere(self, error: Unavailable) -> None:
        if self.cancelled or self.job.background:
            self._cancelled()
        elif self._tokens:
            text = f"{error.message} (the answer had begun)"
            self.stream.put(Unavailable(text, error.retry_after))
        elif self._losses > MOVES:
            self.stream.put(error)
        else:
            try:
                self._on(self)
            except RouterError as refused:
                self.stream.put(refused if not isinstance(refused, Unavailable) else error)

    def _cancelled(self) -> None:
        """Where no replica can say it any more."""
        usage = Usage(prompt_tokens=len(self.job.tokens), completion_tokens=self._tokens)
        self.stream.put(Finished(FinishReason.CANCELLED, self._usage(usage)))

    def _leave(self) -> str:
        """Returns the name of the replica that it was at."""
        if self.at is None:
            return ""
        at, self.at = self.at, None
        at.jobs[self.job.background] -= 1
        return at.name

    def _usage(self, usage: Usage) -> Usage:
        """With times as they were at the edge, where the way is part of them."""
        now = time.monotonic()
        return replace(
            usage,
            queue_time=usage.queue_time + self._sent - self._began,
            time_to_first_token=(self._first or now) - self._began,
            total_time=now - self._began,
        )
