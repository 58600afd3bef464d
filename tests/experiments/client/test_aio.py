from dataclasses import replace

import pytest

from router.client import Accepted, AdapterRef, AsyncClient, ClientError, Lifecycle, Outcome, SizeQuestion
from router.experiments.wire.plans import answer_message
from tests.experiments.client.test_sync import PLANNED, SPEC
from tests.experiments.report.told import REPORT


@pytest.fixture
async def experiments(remote):
    async with AsyncClient(remote.target, timeout=10) as made:
        yield made.experiments


async def test_an_experiment_lives_from_plan_to_rollback(experiments):
    made = await experiments.create("medical-v2", SPEC)
    assert made.spec == SPEC
    assert (await experiments.update("medical-v2", {"enrolment": 0.5})).spec.enrolment == 0.5
    assert (await experiments.start("medical-v2")).state is Lifecycle.RUNNING
    found = await experiments.report("medical-v2")
    assert replace(found, experiment=REPORT.experiment) == REPORT
    assert (await experiments.promote("medical-v2")).default == AdapterRef("medical", "1.1.0")
    assert (await experiments.roll_back("medical-v2")).default == AdapterRef("medical", "1.0.0")
    assert (await experiments.stop("medical-v2", reason="done")).stop_reason == "done"
    assert (await experiments.get("medical-v2")).state is Lifecycle.STOPPED
    await experiments.delete("medical-v2")
    assert await experiments.list() == ()


async def test_a_question_is_answered(experiments, remote):
    remote.experiments.planned = answer_message(PLANNED)
    assert await experiments.plan(SizeQuestion("thumbs_up")) == PLANNED


async def test_outcomes_one_by_one_and_many(experiments):
    one = Outcome("m", 1.0, response_id="r-1")
    assert await experiments.record_outcome(one) is Accepted.COUNTED
    found = [r async for r in experiments.record_outcomes(replace(one, value=v) for v in (1.0, 2.0, 0.0))]
    assert [r.status for r in found] == [Accepted.COUNTED, None, Accepted.COUNTED]
    with pytest.raises(ClientError):
        await experiments.record_outcome(replace(one, response_id="nobody"))
