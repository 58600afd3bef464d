"""Five times what the server can give, for a moment: what it gives stays, refusals and health come soon."""

from __future__ import annotations

import argparse
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import overload
from router.server.metrics import Metrics
from router.v1 import inference_pb2 as pb
from tests.server.helpers import Connect, Start, ask, details, failure, until

pytestmark = pytest.mark.slow


def options(**said: Any) -> argparse.Namespace:
    return argparse.Namespace(
        **{"seconds": 10.0, "tokens": 16, "deadline": 2.0, "times": 5.0, "sweep": (64,), **said}
    )


@pytest.mark.long
@pytest.mark.alone
@pytest.mark.timeout(120)
async def test_goodput_stays_under_five_times_the_load() -> None:
    """Without the check of deadlines at admission a quarter of the peak is left."""
    with overload.fake(0.02) as address:
        peak, overloaded = await overload.measure(address, options())
    assert overloaded["goodput/s"] > 0.8 * peak["goodput/s"], (peak, overloaded)
    assert overloaded["refused/s"] > peak["goodput/s"]
    assert overloaded["other"] == 0


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
    await until(lambda: server.lifecycle.in_flight == 40, 20)
    refused = await failure(stubs.inference.Generate(ask("x" * (1 << 20)), timeout=2))
    info = details(refused)["ErrorInfo"]
    assert (info.reason, info.metadata["bound"]) == ("QUEUE_FULL", "deadline")
    assert details(refused)["RetryInfo"].retry_delay.ToSeconds() >= 0
    assert shed(server.metrics, "deadline") == 1
    route = pb.RouteRequest(input=pb.Input(text="one"))
    assert (await stubs.inference.Route(route, timeout=4)).HasField("decision")  # it needs no row
    for call in waiting:
        call.cancel()
    await until(lambda: server.lifecycle.in_flight == 0, 20)


def shed(metrics: Metrics, bound: str) -> float:
    return metrics.registry.get_sample_value("lora_router_shed_total", {"bound": bound}) or 0.0
