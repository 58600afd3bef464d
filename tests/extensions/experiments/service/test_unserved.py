"""What fails between assignment and first token, through a server: at each stage, over gRPC and HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from router.errors import ResourceExhausted
from router.v1 import experiments_pb2 as votes
from router.v1 import inference_pb2 as pb
from tests.extensions.experiments.service.trials import WORDS, exposures, of_unit, trial, values
from tests.server.helpers import details, failure, until

pytestmark = pytest.mark.slow
Fail = Callable[[SimpleNamespace], Awaitable[None]]


async def no_memory(ref: Any, pinned: bool | None = None) -> None:
    raise ResourceExhausted("no room for it")


async def lease(server: SimpleNamespace) -> None:
    """Neither the arm's version nor control's can be loaded."""
    server.registry.load = no_memory
    await failure(server.inference.Generate(of_unit("ann")))


async def too_long(server: SimpleNamespace) -> None:
    await failure(server.inference.Generate(of_unit("ann", "medical " * 2000)))


async def full(server: SimpleNamespace) -> None:
    server.engine.max_running = server.engine.max_queue = 0
    await failure(server.inference.Generate(of_unit("ann")))


async def breaks(server: SimpleNamespace) -> None:
    server.engine.fail_step("out of memory")
    await failure(server.inference.Generate(of_unit("ann")))


async def deadline(server: SimpleNamespace) -> None:
    server.engine.hold()
    server.app.interceptors._max_deadline = 0.3
    await failure(server.inference.Generate(of_unit("ann")))


async def leaves(server: SimpleNamespace) -> None:
    server.engine.hold()
    call = server.inference.Generate(of_unit("ann"))
    await until(lambda: server.engine.busy)
    call.cancel()


async def leaves_a_stream(server: SimpleNamespace) -> None:
    server.engine.hold()
    asked = pb.StreamGenerateRequest.FromString(of_unit("ann").SerializeToString())
    call = server.inference.StreamGenerate(asked)
    await call.read()  # that it was started
    call.cancel()


async def leaves_by_http(server: SimpleNamespace) -> None:
    server.engine.hold()
    body = {"model": "auto", "messages": [{"role": "user", "content": WORDS}], "user": "ann"}
    asking = asyncio.create_task(server.http.post("/v1/chat/completions", json=body))
    await until(lambda: server.engine.busy)
    asking.cancel()


async def later(server: SimpleNamespace) -> None:
    """After the first token."""
    asked = of_unit("ann", sampling={"max_tokens": 500, "min_tokens": 500})
    call = server.inference.StreamGenerate(pb.StreamGenerateRequest.FromString(asked.SerializeToString()))
    await call.read()
    await call.read()
    call.cancel()


CASES = [
    (lease, "lease", "error"),
    (too_long, "admission", "error"),
    (full, "admission", "error"),
    (breaks, "prefill", "error"),
    (deadline, "prefill", "error"),
    (leaves, "prefill", "cancelled"),
    (leaves_a_stream, "prefill", "cancelled"),
    (leaves_by_http, "prefill", "cancelled"),
    (later, "stream", "cancelled"),
]


@pytest.mark.parametrize(("fail", "stage", "how"), CASES, ids=[fail.__name__ for fail, *_ in CASES])
async def test_a_request_that_fails_is_kept_with_its_stage(run, store, http, fail: Fail, stage, how):
    server = await run(trial(), http_listen="127.0.0.1:0")
    server.http = http(server.app)
    await fail(server)
    await until(lambda: bool(server.live.counts.ended))
    await server.live.recorder.flush()
    (response_id,) = exposures(store)
    arm = exposures(store)[response_id].arm
    assert dict(server.live.counts.ended) == {("trial", arm, stage, how): 1}
    found = values(store, response_id)
    other = {"error": "cancelled", "cancelled": "error"}[how]
    assert (found[how], found[other]) == (1.0, 0.0)
    if stage == "stream":
        assert found["time_to_first_token"] > 0
    else:
        assert set(found) == {"error", "cancelled", "time_without_token"}
    server.engine.resume()


async def test_what_is_refused_before_its_assignment_is_in_no_experiment(run, store):
    server = await run(trial())
    await failure(server.inference.Generate(of_unit("ann", "")))
    await server.live.recorder.flush()
    assert not exposures(store)


async def test_a_retry_is_another_response_of_the_unit(run, store):
    server = await run(trial())
    most, server.engine.max_running = server.engine.max_running, 0
    queue, server.engine.max_queue = server.engine.max_queue, 0
    await failure(server.inference.Generate(of_unit("ann")))
    server.engine.max_running, server.engine.max_queue = most, queue
    await server.inference.Generate(of_unit("ann"))
    await server.live.recorder.flush()
    assert len(exposures(store)) == 2
    assert len({one.unit for one in exposures(store).values()}) == 1


async def test_a_refusal_names_the_response_that_outcomes_are_recorded_under(run, store, http):
    server = await run(trial(), http_listen="127.0.0.1:0")
    server.engine.max_running = server.engine.max_queue = 0
    seen = await failure(server.inference.Generate(of_unit("ann")))
    body = {"model": "auto", "messages": [{"role": "user", "content": WORDS}], "user": "bo"}
    answer = await http(server.app).post("/v1/chat/completions", json=body)
    named = [details(seen)["ErrorInfo"].metadata["response_id"], answer.headers["x-router-response-id"]]
    await server.live.recorder.flush()
    assert set(named) == set(exposures(store))
    for response_id in named:
        vote = votes.Outcome(response_id=response_id, metric="success", value=0)
        counted = await server.experiments.RecordOutcome(votes.RecordOutcomeRequest(outcome=vote))
        assert counted.status == votes.OUTCOME_STATUS_COUNTED
