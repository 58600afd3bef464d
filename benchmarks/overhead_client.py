"""The client of `benchmarks.experiment_overhead`, in a process of its own: a line in, a line out.

In: {"texts": [...], "told": bool}; out: {"seconds": ..., "tokens": ...}. 16 streams never pause; an outcome
is sent for every answer where `told`, beside the streams.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterator

import grpc

from benchmarks.prompts import NEW_TOKENS, REQUESTS
from router.v1 import experiments_pb2
from router.v1 import inference_pb2 as pb
from router.v1.experiments_pb2_grpc import ExperimentServiceStub
from router.v1.inference_pb2_grpc import InferenceServiceStub


class Round:
    """The answers of one line."""

    def __init__(self, channel: grpc.aio.Channel, told: bool) -> None:
        self._stub, self._outcomes = InferenceServiceStub(channel), ExperimentServiceStub(channel)
        self._told, self._telling, self._tokens = told, set[asyncio.Task[None]](), 0

    async def run(self, texts: list[str]) -> dict[str, float]:
        """Seconds until the last answer, and all tokens; returns when all outcomes are kept too."""
        begin, left = time.perf_counter(), iter(enumerate(texts))
        await asyncio.gather(*(self._stream(left) for _ in range(REQUESTS)))
        seconds = time.perf_counter() - begin
        await asyncio.gather(*self._telling)
        return {"seconds": seconds, "tokens": self._tokens}

    async def _stream(self, left: Iterator[tuple[int, str]]) -> None:
        for number, text in left:
            response_id = await self._answer(number, text)
            if self._told:
                self._telling.add(asyncio.create_task(self._tell(response_id)))

    async def _answer(self, number: int, text: str) -> str:
        asked = pb.StreamGenerateRequest(
            input=pb.Input(raw_prompt=text),
            sampling=pb.Sampling(max_tokens=NEW_TOKENS, min_tokens=NEW_TOKENS),
            routing=pb.Routing(unit=f"user-{number}"),
        )
        events = [event async for event in self._stub.StreamGenerate(asked)]
        self._tokens += events[-1].finished.usage.completion_tokens
        return str(events[0].started.response_id)

    async def _tell(self, response_id: str) -> None:
        about = experiments_pb2.Outcome(response_id=response_id, metric="liked", value=1)
        await self._outcomes.RecordOutcome(experiments_pb2.RecordOutcomeRequest(outcome=about))


async def main(address: str) -> None:
    """Until the end of the input."""
    async with grpc.aio.insecure_channel(address) as channel:
        while line := await asyncio.to_thread(sys.stdin.readline):
            asked = json.loads(line)
            print(json.dumps(await Round(channel, asked["told"]).run(asked["texts"])), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
