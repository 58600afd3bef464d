"""A server that is stopped loses nothing that it has given: on a real process with a real file."""

from __future__ import annotations

import asyncio
import signal
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from router.extensions.experiments.model import ArmSpec
from router.extensions.experiments.store.store import ExperimentStore
from router.v1.inference_pb2_grpc import InferenceServiceStub
from tests.extensions.experiments.made import SPEC, experiment
from tests.extensions.experiments.service.trials import WORDS, of_unit
from tests.server.helpers import failure, launch, long_stream

pytestmark = pytest.mark.slow

ANY_VERSION = replace(SPEC, arms=(SPEC.arms[0], ArmSpec("new", 0.5)))


Served = tuple[ExperimentStore, Process, InferenceServiceStub]


@asynccontextmanager
async def served(
    tmp_path: Path, *options: str
) -> AsyncIterator[tuple[ExperimentStore, Process, InferenceServiceStub]]:
    """The store, the process and its stub."""
    url = f"sqlite:///{tmp_path / 'experiments.db'}"
    store = ExperimentStore(url)
    store.create(experiment(spec=ANY_VERSION))
    process, address = await launch("--step", "0.01", "--experiments", url, *options)
    async with grpc.aio.insecure_channel(address) as channel:
        yield store, process, InferenceServiceStub(channel)
    if process.returncode is None:
        process.kill()
    await process.communicate()
    store.close()


def answers(store: ExperimentStore) -> int:
    return sum(store.data("trial", 1).responses.values())


async def test_sigterm_writes_what_was_answered_until_the_last_moment(tmp_path: Path) -> None:
    async with served(tmp_path, "--drain", "5") as (store, process, stub):
        await asyncio.gather(*(stub.Generate(of_unit(f"user-{i}")) for i in range(20)))
        request = long_stream(60, text=WORDS)
        request.routing.unit = "the last one"
        events = aiter(stub.StreamGenerate(request))
        await anext(events)
        process.send_signal(signal.SIGTERM)
        assert [e async for e in events][-1].finished.usage.completion_tokens == 60
        assert await asyncio.wait_for(process.wait(), 20) == 0
        assert answers(store) == 21
        assert sum(bucket.exposed for bucket in store.data("trial", 1).buckets) == 21


async def test_what_the_server_cuts_off_was_not_cancelled_by_its_user(tmp_path: Path) -> None:
    async with served(tmp_path, "--drain", "0.3") as (store, process, stub):
        request = long_stream(1500, text=WORDS)
        request.routing.unit = "ann"
        events = aiter(stub.StreamGenerate(request))
        await anext(events)
        await anext(events)
        process.send_signal(signal.SIGTERM)
        await failure(events)
        assert await asyncio.wait_for(process.wait(), 20) == 0
        with store.reading() as conn:
            rows = conn.exec_driver_sql("SELECT metric, value FROM lora_router_v_outcomes").all()
        assert {name: value for name, value in rows if name in ("error", "cancelled")} == {
            "error": 1.0,
            "cancelled": 0.0,
        }
