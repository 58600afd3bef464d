"""A client that sends batches of outcomes at a rate and remembers what was acknowledged."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc

from benchmarks.intake_server import METRIC
from router.v1 import experiments_pb2 as pb
from router.v1.experiments_pb2_grpc import ExperimentServiceStub

# What grpc itself says of a write into a connection that ended under it.
BROKEN = "Internal error from Core"


def _gone(error: grpc.aio.AioRpcError) -> bool:
    return error.code() is grpc.StatusCode.UNAVAILABLE or error.details() == BROKEN


@dataclass
class Sender:
    """Outcomes of 1.0 with keys of their own, so that their sum is their number.

    `open` are batches that were made and not acknowledged: they are sent again, first, by the next `send`.
    """

    responses: Sequence[str]
    batch: int
    made: int = 0
    acknowledged: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    waits: list[float] = field(default_factory=list)  # seconds from sending a batch to its acknowledgement
    open: dict[int, pb.RecordOutcomesRequest] = field(default_factory=dict)
    heard: asyncio.Event = field(default_factory=asyncio.Event)  # an acknowledgement since `send`

    async def send(self, address: str, seconds: float, rate: float) -> bool:
        """Send for so long at `rate` outcomes a second (0: as fast as it goes), then wait for the last
        acknowledgement; True if it came, False if the server went away."""
        sent: dict[int, float] = {}
        self.heard.clear()
        async with grpc.aio.insecure_channel(address) as channel:
            call = ExperimentServiceStub(channel).RecordOutcomes()  # type: ignore[no-untyped-call]
            writing = asyncio.ensure_future(self._write(call, sent, seconds, rate))
            try:
                async for answer in call:
                    self._take(answer, sent)
                await writing
            except grpc.aio.AioRpcError as error:
                if not _gone(error):
                    raise
                return False
            finally:
                writing.cancel()
                await asyncio.gather(writing, return_exceptions=True)
        return not self.open

    async def _write(self, call: Any, sent: dict[int, float], seconds: float, rate: float) -> None:
        again, begin = deque(sorted(self.open)), time.monotonic()
        for number in range(1 << 40):
            if again:
                request = self.open[again.popleft()]
            elif time.monotonic() - begin < seconds:
                request = self._next()
            else:
                break
            if rate:
                await asyncio.sleep(begin + number * self.batch / rate - time.monotonic())
            sent[request.sequence] = time.monotonic()
            await call.write(request)
        await call.done_writing()

    def _next(self) -> pb.RecordOutcomesRequest:
        number, known = self.made // self.batch, len(self.responses)
        outcomes = [
            pb.Outcome(
                response_id=self.responses[i % known], metric=METRIC, value=1.0, idempotency_key=f"key-{i}"
            )
            for i in range(self.made, self.made + self.batch)
        ]
        self.made += self.batch
        self.open[number] = pb.RecordOutcomesRequest(sequence=number, outcomes=outcomes)
        return self.open[number]

    def _take(self, answer: pb.RecordOutcomesResponse, sent: dict[int, float]) -> None:
        self.waits.append(time.monotonic() - sent[answer.sequence])
        del self.open[answer.sequence]
        self.heard.set()
        self.acknowledged += len(answer.statuses)
        self.statuses.update(pb.OutcomeStatus.Name(s)[15:].lower() for s in answer.statuses)
