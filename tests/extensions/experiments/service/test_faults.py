"""Requests in experiments when something fails: answers, arms, and the store."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest

from router.errors import (
    AdapterNotFound,
    AdapterRejected,
    DataLoss,
    FieldViolation,
    InvalidRequest,
    PromptTooLong,
    ResourceExhausted,
    StoreDown,
)
from router.extensions.experiments.model import ArmSpec
from router.extensions.experiments.store.store import ExperimentStore
from router.types import AdapterState, PromptTemplate
from router.v1 import experiments_pb2 as pb
from tests.extensions.experiments.made import NEW, OLD, SPEC
from tests.extensions.experiments.service.lab import create, experimenting
from tests.extensions.experiments.service.trials import (
    UNITS,
    WORDS,
    arms_of,
    exposures,
    of_unit,
    trial,
    values,
)
from tests.server.helpers import Connect, Start, details, failure, long_stream, until

pytestmark = pytest.mark.slow

AGAINST_BASE = replace(SPEC, arms=(ArmSpec("control", 0.5, OLD), ArmSpec("new", 0.5)))


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


async def test_a_deadline_is_an_error_and_no_cancellation(run, store, monkeypatch):
    server = await run(trial())
    server.engine.step_seconds = 0.02
    monkeypatch.setattr(server.app.interceptors, "_max_deadline", 0.3)
    request = of_unit("ann", sampling={"max_tokens": 500, "min_tokens": 500})
    caught = await failure(server.inference.Generate(request))
    assert caught.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: len(store.outcomes) > 0)
    (response_id,) = exposures(store)
    assert values(store, response_id)["error"] == 1.0
    assert values(store, response_id)["cancelled"] == 0.0


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


@pytest.mark.parametrize("error", [ResourceExhausted("does not fit the KV cache"), PromptTooLong(8, 9)])
async def test_a_request_that_is_too_large_rests_no_arm(run, monkeypatch, error):
    server = await run(trial())
    new = [unit for unit, arm in (await arms_of(server)).items() if arm[0] == "new"]
    submit, refusals = server.engine.submit, []

    def submit_small(job):
        if job.adapter == server.registry.infos[NEW].digest and job.params.max_tokens == 77:
            refusals.append(job)
            raise error
        return submit(job)

    monkeypatch.setattr(server.engine, "submit", submit_small)
    large = await server.inference.Generate(of_unit(new[0], sampling={"max_tokens": 77}))
    assert (large.decision.arm, large.decision.adapter) == ("new", OLD.resource)  # as control would have it
    assert len(refusals) == 1
    assert set((await arms_of(server, new)).values()) == {("new", NEW.resource)}


async def test_bad_input_is_refused_and_rests_no_arm(run, monkeypatch):
    server = await run(trial())
    new = [unit for unit, arm in (await arms_of(server)).items() if arm[0] == "new"]
    encode = server.engine.encode

    def encode_good(prompt, most=None, check=None):
        if "bad" in prompt.turns[0].text:
            raise InvalidRequest([FieldViolation("input", "has no tokens")])
        return encode(prompt, most, check)

    monkeypatch.setattr(server.engine, "encode", encode_good)
    seen = await failure(server.inference.Generate(of_unit(new[0], f"{WORDS} bad")))
    assert seen.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert set((await arms_of(server, new)).values()) == {("new", NEW.resource)}


@pytest.mark.parametrize(
    "error",
    [AdapterNotFound("medical"), AdapterRejected("probes"), DataLoss("damaged"), ResourceExhausted("full")],
    ids=lambda error: error.reason,
)
async def test_an_arm_rests_for_faults_of_its_own(run, monkeypatch, error):
    server = await run(trial())
    new = [unit for unit, arm in (await arms_of(server)).items() if arm[0] == "new"]
    lease, tried = server.registry.lease, Counter()

    def broken(ref):
        tried[ref] += 1
        if ref == NEW:
            raise error
        return lease(ref)

    monkeypatch.setattr(server.registry, "lease", broken)
    assert set((await arms_of(server, new[:1])).values()) == {("new", OLD.resource)}
    assert set((await arms_of(server, new)).values()) == {("new", OLD.resource)}
    assert tried[NEW] == 1


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


async def test_whatever_happens_leases_are_given_back_and_every_begun_answer_has_its_end(run, store):
    server = await run(trial())
    server.engine.step_seconds = 0.002

    async def one(number: int) -> None:
        request = long_stream(30, text=WORDS)
        request.routing.unit = f"user-{number}"
        call = server.inference.StreamGenerate(request)
        events = aiter(call)
        for _ in range(number % 7):
            await anext(events)
        if number % 2:
            call.cancel()
        else:
            assert [e async for e in events][-1].HasField("finished")

    await asyncio.gather(*(one(number) for number in range(40)))
    await until(lambda: server.app.admission.in_flight == 0 and not server.engine.busy)
    await server.live.recorder.flush()
    assert {info.leases for info in server.registry.infos.values()} == {0}
    begun = set(exposures(store))
    assert 20 <= len(begun) <= 40
    assert begun == {kept.outcome.response_id for kept in store.outcomes.values()}
    finished = [r for r in begun if values(store, r)["cancelled"] == 0.0]
    assert len(finished) >= 20


def _broken(store: ExperimentStore, file: Path) -> None:
    """A folder where the database was."""
    store._engine.dispose()
    for left in file.parent.glob(f"{file.name}*"):
        left.unlink()
    file.mkdir()


async def test_a_store_that_is_down_does_not_tell_where_it_is(
    tmp_path: Path,
    fakes: SimpleNamespace,
    start_server: Start,
    connect: Connect,
    caplog: pytest.LogCaptureFixture,
) -> None:
    file = tmp_path / "trials.db"
    store = await asyncio.to_thread(ExperimentStore, f"sqlite:///{file}")
    async with experimenting(store, fakes, start_server, connect) as lab:
        await asyncio.to_thread(_broken, store, file)
        vote = pb.Outcome(response_id="x", metric="solved", value=1)
        calls = (
            lab.experiments.CreateExperiment(create()),
            lab.experiments.ListExperiments(pb.ListExperimentsRequest()),
            lab.experiments.RecordOutcome(pb.RecordOutcomeRequest(outcome=vote)),
        )
        for call in calls:
            seen = await failure(call)
            assert details(seen)["ErrorInfo"].reason == "STORE_DOWN"
            assert seen.details() == StoreDown.told
            assert "trials.db" not in repr((seen, details(seen)))
    kept = [r.fields["text"] for r in caplog.records if r.message == "details withheld from the caller"]
    assert len(kept) == len(calls)
    assert any("trials.db" in text for text in kept)
