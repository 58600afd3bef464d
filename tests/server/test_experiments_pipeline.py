"""Requests in experiments, through real calls: arms, exposures, outcomes, and what happens in faults."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import grpc
import pytest

from router.errors import ResourceExhausted
from router.experiments.live import writer
from router.experiments.model import BUILT_IN, ArmSpec
from router.types import AdapterState, PromptTemplate
from router.v1 import inference_pb2 as pb
from tests.experiments.live.made import NEW, OLD, SPEC
from tests.experiments.memory_store import MemoryStore
from tests.fakes import adapter
from tests.server.helpers import failure, long_stream, messages, until
from tests.server.trials import UNITS, WORDS, exposures, live_on, of_unit, trial, values

AGAINST_BASE = replace(SPEC, arms=(ArmSpec("control", 0.5, OLD), ArmSpec("new", 0.5)))


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
async def run(start_server, connect, fakes, store, monkeypatch):
    """`await run(experiment, ...)`: a server with them, its stubs and what stands behind it."""
    monkeypatch.setattr(writer, "RETRY", 0.02)
    monkeypatch.setattr(writer, "LINGER", 0.02)
    started = []

    async def begin(*experiments, **options) -> SimpleNamespace:
        fakes.registry.put(adapter("medical", "1.1.0"))
        for one in experiments:
            store.create(one)
        live = await live_on(store, base_digest=lambda: "base", router_digest=lambda _: "router", **options)
        started.append(live)
        app = await start_server(**vars(fakes), experiments=live)
        return SimpleNamespace(app=app, live=live, **vars(connect(app)), **vars(fakes))

    yield begin
    store.down = False
    for live in started:
        await live.close()


async def arms_of(server, units=UNITS) -> dict[str, tuple[str, str]]:
    """Unit -> arm and version that answered."""
    answers = await asyncio.gather(*(server.inference.Generate(of_unit(unit)) for unit in units))
    return {u: (a.decision.arm, a.decision.adapter) for u, a in zip(units, answers, strict=True)}


async def test_a_unit_keeps_its_arm_and_the_decision_says_it(run):
    server = await run(trial())
    first, again = await arms_of(server), await arms_of(server)
    assert first == again
    assert set(first.values()) == {("control", OLD.resource), ("new", NEW.resource)}
    answer = await server.inference.Generate(of_unit("ann"))
    assert answer.decision.experiment == "trial"
    assert answer.decision.reason == 3  # classified, as without the experiment


async def test_the_base_as_an_arm(run):
    server = await run(trial(AGAINST_BASE))
    found = await arms_of(server)
    assert set(found.values()) == {("control", OLD.resource), ("new", "")}
    one = next(unit for unit, arm in found.items() if arm[0] == "new")
    answer = await server.inference.Generate(of_unit(one))
    assert answer.text.startswith("[base]")
    assert answer.decision.digest == answer.decision.domain == ""


async def test_ramping_while_it_runs_never_reshuffles(run, store):
    server = await run(trial(replace(SPEC, enrolment=0.4)))
    some = {unit: arm for unit, arm in (await arms_of(server)).items() if arm[0]}
    found = store.get("trial")
    after = replace(found, spec=replace(found.spec, enrolment=1.0))
    store.experiments["trial"] = replace(after, etag="wider")
    await server.live.refresh()
    more = await arms_of(server)
    assert 0 < len(some) < len(UNITS)
    assert some.items() <= more.items()


async def test_a_change_by_another_server_is_taken_over(run, store):
    server = await run()
    assert (await arms_of(server, ["ann"]))["ann"][0] == ""
    store.create(trial())
    await until(lambda: server.live.running)
    assert (await arms_of(server, ["ann"]))["ann"][0] in ("control", "new")


async def test_an_exposure_once_a_response_with_all_it_is_bound_to(run, store):
    server = await run(trial())
    answer = await server.inference.Generate(of_unit("ann", sampling={"temperature": 0.5, "seed": 3}))
    await server.live.recorder.flush()
    (found,) = exposures(store).values()
    assert found.response_id == answer.response_id
    assert (found.arm, found.propensity, found.degraded) == (answer.decision.arm, 0.5, "")
    assert found.adapter_digest == answer.decision.digest != ""
    assert (found.base_digest, found.router_digest) == ("base", "router")
    assert json.loads(found.sampling) == {
        "max_tokens": 256,
        "repetition_penalty": 1.0,
        "seed": 3,
        "temperature": 0.5,
        "top_p": 1.0,
    }
    assert "ann" not in found.unit
    assert server.live.counts.exposures == {("trial", found.arm): 1}


@pytest.mark.parametrize("method", ["Generate", "StreamGenerate"])
async def test_built_in_outcomes(run, store, method):
    server = await run(trial())
    asked = of_unit("ann", sampling={"max_tokens": 2})
    if method == "StreamGenerate":
        request = long_stream()
        request.MergeFrom(type(request).FromString(asked.SerializeToString()))
        request.input.text, request.sampling.max_tokens, request.sampling.min_tokens = WORDS, 2, 0
        started = (await messages(server.inference.StreamGenerate(request)))[0].started
        response_id = started.response_id
    else:
        response_id = (await server.inference.Generate(asked)).response_id
    await until(lambda: server.live.recorder.queued >= 7 or len(store.outcomes) == 6)
    await server.live.recorder.flush()
    found = values(store, response_id)
    assert set(found) == set(BUILT_IN)
    assert found["completion_tokens"] == 2
    assert (found["length_stop"], found["error"], found["cancelled"]) == (1.0, 0.0, 0.0)
    assert 0 < found["time_to_first_token"] <= found["total_time"] < 5


async def test_a_user_who_leaves_is_counted_as_cancelled(run, store):
    server = await run(trial())
    request = long_stream(text=WORDS)
    request.routing.unit = "ann"
    call = server.inference.StreamGenerate(request)
    events = aiter(call)
    for _ in range(4):
        await anext(events)
    call.cancel()
    await until(lambda: len(store.outcomes) == 6)
    (response_id,) = exposures(store)
    found = values(store, response_id)
    assert (found["cancelled"], found["error"], found["length_stop"]) == (1.0, 0.0, 0.0)
    assert found["completion_tokens"] >= 3


async def test_a_step_that_fails_is_an_exposure_with_an_error(run, store):
    server = await run(trial())
    server.engine.fail_step("boom")
    assert (await failure(server.inference.Generate(of_unit("ann")))).code() is grpc.StatusCode.INTERNAL
    await server.live.recorder.flush()
    (response_id,) = exposures(store)
    found = values(store, response_id)
    assert (found["error"], found["cancelled"]) == (1.0, 0.0)


async def test_a_deadline_is_an_error_and_no_cancellation(run, store):
    server = await run(trial())
    request = of_unit("ann", sampling={"max_tokens": 500, "min_tokens": 500})
    caught = await failure(server.inference.Generate(request, timeout=0.15))
    assert caught.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: len(store.outcomes) == 6)
    (response_id,) = exposures(store)
    assert values(store, response_id)["error"] == 1.0
    assert values(store, response_id)["cancelled"] == 0.0


async def test_what_was_refused_before_it_began_is_no_exposure(run, store):
    server = await run(trial())
    refused = await failure(server.inference.Generate(of_unit("ann", sampling={"max_tokens": 4096})))
    assert refused.code() is grpc.StatusCode.INVALID_ARGUMENT
    server.engine.max_running = server.engine.max_queue = 0
    refused = await failure(server.inference.Generate(of_unit("ann")))
    assert refused.code() is grpc.StatusCode.UNAVAILABLE
    await server.live.recorder.flush()
    assert exposures(store) == {}
    assert store.outcomes == {}


async def test_cancelled_in_the_queue_is_no_exposure(run, store):
    server = await run(trial())
    server.engine.hold()
    call = server.inference.Generate(of_unit("ann"))
    await until(lambda: server.engine.status().waiting == 1)
    call.cancel()
    await until(lambda: server.app.lifecycle.in_flight == 0)
    server.engine.resume()
    await until(lambda: not server.engine.busy)
    await server.live.recorder.flush()
    assert exposures(store) == {}


async def test_route_and_count_tokens_show_the_arm_and_expose_nothing(run, store):
    server = await run(trial())
    arms = await arms_of(server, ["ann"])
    before = len(exposures(store))
    request = of_unit("ann")
    shown = await server.inference.Route(pb.RouteRequest(input=request.input, routing=request.routing))
    counted = await server.inference.CountTokens(
        pb.CountTokensRequest(input=request.input, routing=request.routing)
    )
    assert (shown.decision.arm, shown.decision.adapter) == arms["ann"]
    assert counted.decision.arm == arms["ann"][0]
    await server.live.recorder.flush()
    assert len(exposures(store)) == max(before, 1)


async def test_a_missing_unit_is_not_enrolled_and_counted(run):
    server = await run(trial())
    assert await arms_of(server, [""]) == {"": ("", OLD.resource)}
    await server.inference.Route(pb.RouteRequest(input=of_unit("").input))
    assert server.live.counts.unit_missing == {"trial": 1}


async def test_a_named_version_gets_that_version(run):
    server = await run(trial())
    named = {"adapter": NEW.resource}
    answers = [await server.inference.Generate(of_unit(u, routing=named)) for u in UNITS[:6]]
    assert {(a.decision.arm, a.decision.adapter) for a in answers} == {("", NEW.resource)}


async def test_a_broken_arm_stays_in_its_arm_and_control_stands_in(run, store):
    server = await run(trial())
    new = [unit for unit, arm in (await arms_of(server)).items() if arm[0] == "new"]
    server.registry.put(
        replace(server.registry.infos[NEW], state=AdapterState.QUARANTINED, error="bad bytes")
    )
    found = await arms_of(server, new)
    assert set(found.values()) == {("new", OLD.resource)}
    await server.live.recorder.flush()
    degraded = [e for e in exposures(store).values() if e.degraded]
    assert len(degraded) == len(new)
    assert {(e.arm, e.degraded, e.adapter_digest) for e in degraded} == {("new", "ADAPTER_REJECTED", "")}
    assert server.live.counts.degraded == {("trial", "new"): len(new)}


async def test_an_arm_that_cannot_be_loaded_rests(run, monkeypatch):
    server = await run(trial())
    new = [unit for unit, arm in (await arms_of(server)).items() if arm[0] == "new"]
    server.registry.put(replace(server.registry.infos[NEW], state=AdapterState.OFFLOADED))
    tried: Counter[str] = Counter()

    async def load(artifact):
        tried[artifact.version] += 1
        raise ResourceExhausted("no memory")

    monkeypatch.setattr(server.engine, "load", load)
    assert set((await arms_of(server, new[:1])).values()) == {("new", OLD.resource)}
    assert set((await arms_of(server, new)).values()) == {("new", OLD.resource)}
    assert tried == {"1.1.0": 1}


async def test_where_control_is_gone_too_the_routed_version_answers(run):
    gone = (ArmSpec("control", 0.5, replace(OLD, version="0.1.0")), ArmSpec("new", 0.5, NEW))
    server = await run(trial(replace(SPEC, arms=gone)))
    server.registry.remove(NEW)
    assert {version for _, version in (await arms_of(server)).values()} == {OLD.resource}
    assert sum(server.live.counts.degraded.values()) == len(UNITS)


async def test_a_longer_template_of_an_arm_refuses_nobody(run):
    server = await run(trial(replace(SPEC, arms=(ArmSpec("control", 0.5), ArmSpec("new", 0.5, NEW)))))
    server.registry.prompts["medical"] = PromptTemplate(system="x" * 5000)
    found = await arms_of(server)
    assert set(found.values()) == {("control", ""), ("new", "")}


async def test_no_experiment_on_the_route_changes_nothing(run, store):
    server = await run(trial())
    answer = await server.inference.Generate(of_unit("ann", "legal one"))
    assert answer.decision.experiment == ""
    assert answer.decision.adapter == "adapters/legal/versions/2.0.0"
    await server.live.recorder.flush()
    assert exposures(store) == {}


async def test_while_the_store_is_down_requests_are_served_without(run, store):
    server = await run(trial())
    before = await arms_of(server)
    store.down = True
    await until(lambda: not server.live.availability.up)
    assert set((await arms_of(server)).values()) == {("", OLD.resource)}
    assert server.live.counts.skipped == {"trial": len(UNITS)}
    store.down = False
    await until(lambda: server.live.availability.up)
    assert await arms_of(server) == before


async def test_answers_under_way_when_the_store_goes_down_are_kept(run, store):
    server = await run(trial())
    request = long_stream(40, text=WORDS)
    request.routing.unit = "ann"
    events = aiter(server.inference.StreamGenerate(request))
    await anext(events)
    store.down = True
    assert [e async for e in events][-1].finished.usage.completion_tokens == 40
    store.down = False
    await until(lambda: len(store.outcomes) == 6, 5)
    assert len(exposures(store)) == 1


async def test_arms_are_loaded_when_the_experiment_starts(run):
    server = await run(trial())
    await until(lambda: server.registry.infos[NEW].state is AdapterState.READY)
