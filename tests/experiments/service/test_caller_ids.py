"""What callers call their requests is a key of nothing that experiments keep."""

from __future__ import annotations

from router.v1 import experiments_pb2 as pb
from tests.experiments.service.trials import exposures, of_unit, trial
from tests.server.helpers import details, failure

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
    vote = pb.Outcome(response_id="the-same", metric="success", value=1)
    seen = await failure(server.experiments.RecordOutcome(pb.RecordOutcomeRequest(outcome=vote)))
    assert details(seen)["ErrorInfo"].reason == "NOT_FOUND"
    vote.response_id = answer.response_id
    counted = await server.experiments.RecordOutcome(pb.RecordOutcomeRequest(outcome=vote))
    assert counted.status == pb.OUTCOME_STATUS_COUNTED


async def test_a_unit_that_is_the_request_id_is_warned_about(run, store):
    server = await run(trial())
    await server.inference.Generate(of_unit("the-same"), metadata=SAID)
    assert "is the id of this request" in server.live.assigner.warnings("trial")[0]
