"""Requests in experiments, through real calls: who gets which arm, and what is kept of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from router.extensions.experiments.model import BUILT_IN, ArmSpec
from router.types import AdapterState
from router.v1 import experiments_pb2 as votes
from router.v1 import inference_pb2 as pb
from tests.extensions.experiments.made import NEW, OLD, SPEC
from tests.extensions.experiments.service.trials import WORDS, arms_of, exposures, of_unit, trial, values
from tests.server.helpers import details, failure, long_stream, messages, until

pytestmark = pytest.mark.slow

AGAINST_BASE = replace(SPEC, arms=(ArmSpec("control", 0.5, OLD), ArmSpec("new", 0.5)))


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


async def test_an_exposure_once_a_response_with_all_it_is_bound_to(run, store):
    server = await run(trial())
    answer = await server.inference.Generate(of_unit("ann", sampling={"temperature": 0.5, "seed": 3}))
    await server.live.recorder.flush()
    (found,) = exposures(store).values()
    assert found.response_id == answer.response_id
    assert (found.arm, found.degraded) == (answer.decision.arm, "")
    assert found.adapter_digest == answer.decision.digest != ""
    assert (found.base_digest, found.router_digest) == ("base", "router")
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
    assert set(found) == set(BUILT_IN) - {"time_without_token"}
    assert found["completion_tokens"] == 2
    assert (found["length_stop"], found["error"], found["cancelled"]) == (1.0, 0.0, 0.0)
    assert 0 < found["time_to_first_token"] <= found["total_time"] < 5


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


async def test_arms_are_loaded_when_the_experiment_starts(run):
    server = await run(trial())
    await until(lambda: server.registry.infos[NEW].state is AdapterState.READY)


SAID = (("x-request-id", "the-same"),)


async def test_users_with_one_request_id_are_exposures_of_their_own(run, store):
    server = await run(trial())
    answers = [await server.inference.Generate(of_unit(unit), metadata=SAID) for unit in ("ann", "bo", "cy")]
    await server.live.recorder.flush()
    assert set(exposures(store)) == {answer.response_id for answer in answers}
    assert len(exposures(store)) == 3


async def test_who_knows_the_request_id_cannot_vote(run, store):
    server = await run(trial())
    answer = await server.inference.Generate(of_unit("ann"), metadata=SAID)
    await server.live.recorder.flush()
    vote = votes.Outcome(response_id="the-same", metric="success", value=1)
    seen = await failure(server.experiments.RecordOutcome(votes.RecordOutcomeRequest(outcome=vote)))
    assert details(seen)["ErrorInfo"].reason == "NOT_FOUND"
    vote.response_id = answer.response_id
    counted = await server.experiments.RecordOutcome(votes.RecordOutcomeRequest(outcome=vote))
    assert counted.status == votes.OUTCOME_STATUS_COUNTED
