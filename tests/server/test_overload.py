"""Five times what the server can give, for a moment: what it gives stays, refusals and health come soon."""

from __future__ import annotations

import argparse
import asyncio
import sys
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from benchmarks import overload
from router.server.metrics import ServerMetrics
from router.v1 import inference_pb2 as pb
from router.v1.inference_pb2_grpc import InferenceServiceStub
from tests.server.helpers import Connect, Start, ask, details, failure, launch, long_stream, messages, until

pytestmark = pytest.mark.slow


def options(**said: Any) -> argparse.Namespace:
    return argparse.Namespace(
        **{"seconds": 20.0, "tokens": 16, "deadline": 2.0, "times": 5.0, "sweep": (64,), **said}
    )


@pytest.mark.long
@pytest.mark.alone
@pytest.mark.timeout(180)
async def test_goodput_stays_under_five_times_the_load() -> None:
    """Without the check of deadlines at admission a quarter of the peak is left.

    What is asked in the first 5 s is not counted: until a queue has lasted for a deadline, it may be a burst.
    """
    with overload.fake(0.02) as (_, address):
        peak, overloaded = await overload.measure(address, options())
    assert overloaded["goodput/s"] > 0.8 * peak["goodput/s"], (peak, overloaded)
    assert overloaded["refused/s"] > peak["goodput/s"]
    assert overloaded["other"] == 0


STREAMS = 250  # as many as rows and queue hold, less 38


@pytest.mark.alone
@pytest.mark.timeout(180)
async def test_all_streams_of_a_connection_are_answered_on_a_busy_machine() -> None:
    """However late the event loop is: the queue has room for all of them."""
    others = [await asyncio.create_subprocess_exec(sys.executable, "-c", "while 1: pass") for _ in range(2)]
    process, address = await launch("--step", "0.02")
    try:
        for _ in range(3):
            options = (("grpc.use_local_subchannel_pool", 1),)
            async with grpc.aio.insecure_channel(address, options=options) as channel:
                stub = InferenceServiceStub(channel)
                streams = [messages(stub.StreamGenerate(long_stream(10))) for _ in range(STREAMS)]
                assert all(stream[-1].HasField("finished") for stream in await asyncio.gather(*streams))
    finally:
        for one in (process, *others):
            one.kill()
            await one.communicate()


async def test_a_request_that_would_be_late_is_refused_before_it_is_read(
    start_server: Start, connect: Connect, fakes: SimpleNamespace
) -> None:
    """With an answer of 0.5 s, two rows and 40 requests before it, one has 10 s to wait."""
    fakes.engine.step_seconds, fakes.engine.max_running = 0.05, 2
    server = await start_server(**vars(fakes), max_running=2, max_queue=100)
    stubs = connect(server)
    ten = {"sampling": {"max_tokens": 10, "min_tokens": 10}}
    assert (await stubs.inference.Generate(ask(**ten), timeout=60)).text
    waiting = [stubs.inference.Generate(ask(**ten), timeout=60) for _ in range(40)]
    await until(lambda: server.admission.in_flight == 40, 20)
    refused = await failure(stubs.inference.Generate(ask("x" * (1 << 20)), timeout=2))
    info = details(refused)["ErrorInfo"]
    assert (info.reason, info.metadata["bound"]) == ("QUEUE_FULL", "deadline")
    assert details(refused)["RetryInfo"].retry_delay.ToSeconds() >= 0
    assert shed(server.metrics, "deadline") == 1
    route = pb.RouteRequest(input=pb.Input(text="one"))
    assert (await stubs.inference.Route(route, timeout=4)).HasField("decision")  # it needs no row
    for call in waiting:
        call.cancel()
    await until(lambda: server.admission.in_flight == 0, 20)


def shed(metrics: ServerMetrics, bound: str) -> float:
    return metrics.registry.get_sample_value("lora_router_shed_total", {"bound": bound}) or 0.0
