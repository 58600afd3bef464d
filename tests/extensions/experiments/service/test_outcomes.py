"""Outcomes over gRPC, one by one and in batches."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from router.errors import Overloaded
from router.extensions.experiments import outcomes as intake
from router.extensions.experiments.model import Accepted
from router.extensions.experiments.outcomes import answers_in_order
from router.extensions.experiments.service import UNACKNOWLEDGED
from router.server.bodies import decoder_of
from router.v1 import experiments_pb2 as pb
from tests.extensions.experiments.service.lab import NAME, answer, create, running
from tests.server.helpers import details, failure, until

pytestmark = pytest.mark.slow


def outcome(**fields: Any) -> pb.Outcome:
    return pb.Outcome(**{"metric": "solved", "value": 1.0, **fields})


async def record(lab: SimpleNamespace, **fields: Any) -> str:
    request = pb.RecordOutcomeRequest(outcome=outcome(**fields))
    status = (await lab.experiments.RecordOutcome(request)).status
    return pb.OutcomeStatus.Name(status).removeprefix("OUTCOME_STATUS_")


async def refused(lab: SimpleNamespace, **fields: Any) -> dict[str, Any]:
    seen = await failure(lab.experiments.RecordOutcome(pb.RecordOutcomeRequest(outcome=outcome(**fields))))
    return {"code": seen.code().name, "text": seen.details(), **details(seen)}


def names(statuses: Any) -> list[str]:
    return [pb.OutcomeStatus.Name(s).removeprefix("OUTCOME_STATUS_") for s in statuses]


async def test_of_a_unit(lab: SimpleNamespace) -> None:
    await running(lab)
    await answer(lab, "anna")
    assert await record(lab, unit={"experiment": NAME, "unit": "anna"}) == "COUNTED"
    found = await refused(lab, unit={"experiment": NAME, "unit": "berta"})
    assert (found["code"], found["ErrorInfo"].reason) == ("NOT_FOUND", "NOT_FOUND")
    assert found["ResourceInfo"].resource_name == "berta"
    assert "its past" in found["text"]
    found = await refused(lab, unit={"experiment": "experiments/nope", "unit": "anna"})
    assert (found["code"], found["ErrorInfo"].reason) == ("NOT_FOUND", "EXPERIMENT_NOT_FOUND")


async def test_when_it_came_is_kept_of_what_clients_send_only(lab: SimpleNamespace) -> None:
    await running(lab)
    rid, before = (await answer(lab, "anna")).response_id, time.time()
    await record(lab, response_id=rid, idempotency_key="k", time={"seconds": 1_000_000_000})
    call = lab.experiments.RecordOutcomes()
    batch = [outcome(response_id=rid, idempotency_key="b", time={"seconds": 1_000_000_000})]
    await call.write(pb.RecordOutcomesRequest(sequence=1, outcomes=batch))
    await call.read()
    await call.done_writing()
    for key in ("k", "b"):
        assert before <= lab.store.outcomes[key].outcome.received <= time.time()
    own = [k.outcome for k in lab.store.outcomes.values() if k.outcome.key.startswith("server:")]
    assert {o.received for o in own} == {0.0}


async def test_an_unknown_response(lab: SimpleNamespace) -> None:
    await running(lab)
    without_a_unit = (await answer(lab, "")).response_id
    for rid in ("nope", without_a_unit):
        found = await refused(lab, response_id=rid)
        assert found["code"] == "NOT_FOUND"
        assert found["ResourceInfo"].resource_type == "response"
        assert "no experiment was exposed" in found["text"]


async def test_late_ones_are_kept_and_not_counted(lab: SimpleNamespace) -> None:
    await running(lab, window=2.0)
    rid = (await answer(lab, "anna")).response_id
    assert await record(lab, response_id=rid, time={"seconds": int(time.time()) + 100}) == "LATE"


async def test_a_metric_that_no_plan_has_is_answered_with_the_nearest(lab: SimpleNamespace) -> None:
    await running(lab)
    rid = (await answer(lab, "anna")).response_id
    misspelt = outcome(response_id=rid, metric="sovled")
    answered = await lab.experiments.RecordOutcome(pb.RecordOutcomeRequest(outcome=misspelt))
    assert answered.status == pb.OUTCOME_STATUS_COUNTED
    assert "no plan has a metric 'sovled'; did you mean 'solved'?" in answered.warning
    of_unit = outcome(unit={"experiment": NAME, "unit": "anna"}, metric="zzz")
    answered = await lab.experiments.RecordOutcome(pb.RecordOutcomeRequest(outcome=of_unit))
    assert f"the plan of {NAME} has no metric 'zzz'; there are: solved" in answered.warning
    planned = outcome(response_id=rid)
    assert not (await lab.experiments.RecordOutcome(pb.RecordOutcomeRequest(outcome=planned))).warning
    call = lab.experiments.RecordOutcomes()
    await call.write(pb.RecordOutcomesRequest(sequence=1, outcomes=[planned, misspelt, misspelt]))
    (text,) = (await call.read()).warnings
    assert "'sovled'" in text
    await call.done_writing()


async def test_a_proportion_becomes_a_mean(lab: SimpleNamespace) -> None:
    await running(lab)
    rid = (await answer(lab, "anna")).response_id
    assert (await refused(lab, response_id=rid, value=0.5))["code"] == "INVALID_ARGUMENT"
    kinds = pb.Experiment.Metric
    mean = kinds(name="solved", kind=kinds.KIND_MEAN, missing=kinds.MISSING_EXCLUDED)
    message = pb.Experiment(name=NAME, primary=mean)
    request = pb.UpdateExperimentRequest(experiment=message, update_mask={"paths": ["primary"]})
    await lab.experiments.UpdateExperiment(request)
    assert await record(lab, response_id=rid, value=0.5) == "COUNTED"


async def test_batches_are_acknowledged_in_order(lab: SimpleNamespace) -> None:
    await running(lab)
    rid = (await answer(lab, "anna")).response_id
    call = lab.experiments.RecordOutcomes()
    batches = [
        [outcome(response_id=rid, idempotency_key="a"), outcome(response_id="nope", idempotency_key="b")],
        [],
        [
            outcome(response_id=rid, value=math.nan),
            outcome(response_id=rid, idempotency_key="a"),
            outcome(response_id=rid, metric="a b", value=math.inf),
            outcome(response_id=rid, idempotency_key="c"),
        ],
    ]
    for sequence, batch in enumerate(batches):
        await call.write(pb.RecordOutcomesRequest(sequence=sequence, outcomes=batch))
    await call.done_writing()
    answers = [a async for a in call]
    assert [a.sequence for a in answers] == [0, 1, 2]
    assert names(answers[0].statuses) == ["COUNTED", "UNKNOWN"]
    assert not answers[1].statuses
    assert names(answers[2].statuses) == ["INVALID", "DUPLICATE", "INVALID", "COUNTED"]
    assert len(answers[2].errors) == 2
    assert answers[2].errors[0].startswith("outcomes[0].value: must be a finite number")
    assert "outcomes[2].metric" in answers[2].errors[1]
    assert "outcomes[2].value" in answers[2].errors[1]
    assert lab.live.counts.outcomes == {"counted": 2, "unknown": 1, "duplicate": 1, "invalid": 2}


async def test_a_batch_is_acknowledged_while_the_stream_is_open(lab: SimpleNamespace) -> None:
    call = lab.experiments.RecordOutcomes()
    for sequence in (3, 9):
        await call.write(pb.RecordOutcomesRequest(sequence=sequence, outcomes=[outcome(response_id="x")]))
        assert (await call.read()).sequence == sequence
    await call.done_writing()


async def test_a_batch_has_a_limit(lab: SimpleNamespace) -> None:
    call = lab.experiments.RecordOutcomes()
    await call.write(pb.RecordOutcomesRequest(outcomes=[outcome(response_id="x")] * 1001))
    seen = await failure(call)
    assert seen.code().name == "INVALID_ARGUMENT"
    assert "at most 1000" in details(seen)["BadRequest"].field_violations[0].description


async def test_junk_ends_the_stream(lab: SimpleNamespace) -> None:
    call = lab.channel.stream_stream("/router.v1.ExperimentService/RecordOutcomes")
    seen = await failure(call(iter([b"\xff\xff\xff"])))
    assert seen.code().name == "INVALID_ARGUMENT"


async def test_batches_that_wait_are_bounded(lab: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server reads no further; what it has not acknowledged the client still has."""
    go, taken = asyncio.Event(), 0
    real = lab.live.recorder.record

    async def slow(outcomes: Any) -> Any:
        nonlocal taken
        taken += 1
        await go.wait()
        return await real(outcomes)

    monkeypatch.setattr(lab.live.recorder, "record", slow)
    call = lab.experiments.RecordOutcomes()
    number = 3 * UNACKNOWLEDGED

    async def write() -> None:
        for sequence in range(number):
            await call.write(pb.RecordOutcomesRequest(sequence=sequence, outcomes=[outcome(response_id="x")]))
        await call.done_writing()

    writing = asyncio.ensure_future(write())
    await until(lambda: taken == UNACKNOWLEDGED)
    await asyncio.sleep(0.05)
    assert taken == UNACKNOWLEDGED
    go.set()
    assert [a.sequence async for a in call] == list(range(number))
    await writing


async def test_a_full_queue_holds_a_stream_back(
    lab: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "FULL_SECONDS", 0.001)
    real, times = lab.live.recorder.record, 0

    async def full_at_first(outcomes: Any) -> Any:
        nonlocal times
        times += 1
        if times < 4:
            raise Overloaded("too many outcomes wait", bound="outcomes")
        return await real(outcomes)

    monkeypatch.setattr(lab.live.recorder, "record", full_at_first)
    call = lab.experiments.RecordOutcomes()
    await call.write(pb.RecordOutcomesRequest(sequence=1, outcomes=[outcome(response_id="x")]))
    assert (await call.read()).sequence == 1
    assert times == 4
    await call.done_writing()


async def test_what_may_not_wait_is_refused_and_told_why(
    lab: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    await running(lab)
    rid, real = (await answer(lab, "anna")).response_id, lab.store.record

    def full(outcomes: Any) -> Any:
        return [Accepted.NOT_KEPT if s is Accepted.UNKNOWN else s for s in real(outcomes)]

    monkeypatch.setattr(lab.store, "record", full)
    found = await refused(lab, response_id="nope")
    assert (found["code"], found["ErrorInfo"].reason) == ("UNAVAILABLE", "QUEUE_FULL")
    assert "as many outcomes wait" in found["text"]
    call = lab.experiments.RecordOutcomes()
    batch = [
        outcome(response_id=one, value=v) for one, v in (("no", 1), (rid, 1), (rid, math.nan), ("no", 1))
    ]
    await call.write(pb.RecordOutcomesRequest(sequence=1, outcomes=batch))
    told = await call.read()
    await call.done_writing()
    assert names(told.statuses) == ["INVALID", "COUNTED", "INVALID", "INVALID"]
    assert [text.partition(":")[0] for text in told.errors] == [
        "outcomes[0]",
        "outcomes[2].value",
        "outcomes[3]",
    ]
    assert "as many outcomes wait" in told.errors[0]
    assert lab.live.counts.outcomes == {"not-kept": 3, "counted": 1, "invalid": 1}


async def test_batches_count_against_the_bytes_of_all_calls(
    lab: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, real, memory = asyncio.Event(), lab.live.recorder.record, lab.app.admission.memory
    whole = memory.free

    async def slow(outcomes: Any) -> Any:
        await go.wait()
        return await real(outcomes)

    monkeypatch.setattr(lab.live.recorder, "record", slow)
    batch = pb.RecordOutcomesRequest(outcomes=[outcome(response_id="x")] * 1000)
    call = lab.experiments.RecordOutcomes()
    for _ in range(3):
        await call.write(batch)
    _, cost = decoder_of(pb.RecordOutcomesRequest.FromString)(batch.SerializeToString())
    await until(lambda: memory.free == whole - 3 * cost)
    go.set()
    for _ in range(3):
        await call.read()
    await until(lambda: memory.free == whole)  # while the stream goes on
    go.clear()
    await call.write(batch)
    await until(lambda: memory.free < whole)
    call.cancel()
    await until(lambda: memory.free == whole)


async def test_a_store_that_is_down_acknowledges_nothing(lab: SimpleNamespace) -> None:
    await running(lab)
    rid = (await answer(lab, "anna")).response_id
    lab.store.down = True
    found = await refused(lab, response_id=rid, idempotency_key="k")
    assert (found["code"], found["ErrorInfo"].reason) == ("UNAVAILABLE", "STORE_DOWN")
    call = lab.experiments.RecordOutcomes()
    await call.write(pb.RecordOutcomesRequest(sequence=1, outcomes=[outcome(response_id=rid)]))
    assert details(await failure(call))["ErrorInfo"].reason == "STORE_DOWN"
    lab.store.down = False
    assert lab.store.outcomes.get("k") is None


async def test_a_drain_ends_the_stream(lab: SimpleNamespace) -> None:
    call = lab.experiments.RecordOutcomes()
    await call.write(pb.RecordOutcomesRequest(sequence=1, outcomes=[outcome(response_id="x")]))
    assert (await call.read()).sequence == 1
    ended = asyncio.ensure_future(failure(call.read()))
    await asyncio.wait_for(lab.app.stop(), 2)
    assert details(await ended)["ErrorInfo"].reason == "DRAINING"


async def test_a_deleted_experiment_is_unknown(lab: SimpleNamespace) -> None:
    await running(lab)
    rid = (await answer(lab, "anna")).response_id
    await lab.experiments.StopExperiment(pb.StopExperimentRequest(name=NAME))
    assert await record(lab, response_id=rid) == "COUNTED"
    await lab.experiments.DeleteExperiment(pb.DeleteExperimentRequest(name=NAME))
    assert (await refused(lab, response_id=rid))["code"] == "NOT_FOUND"
    await lab.experiments.CreateExperiment(create())
    assert (await refused(lab, unit={"experiment": NAME, "unit": "anna"}))["code"] == "NOT_FOUND"


class Sender:
    """Sends 0, 1, … and knows how many were read."""

    def __init__(self, number: int) -> None:
        self.number, self.read = number, 0

    async def __aiter__(self) -> AsyncIterator[int]:
        for i in range(self.number):
            self.read += 1
            yield i


async def take(answers: AsyncIterator[int], seen: list[int]) -> None:
    async for a in answers:
        seen.append(a)


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_answers_come_in_order_whichever_is_done_first() -> None:
    async def answer(i: int) -> int:
        await asyncio.sleep(0.002 * (5 - i))
        return i

    assert [a async for a in answers_in_order(Sender(5), answer, 3)] == [0, 1, 2, 3, 4]


async def test_a_lone_request_is_answered_while_the_stream_stays_open() -> None:
    closed = asyncio.Event()

    async def requests() -> AsyncIterator[int]:
        yield 7
        await closed.wait()

    async def answer(i: int) -> int:
        return i

    answers = aiter(answers_in_order(requests(), answer, 2))
    assert await asyncio.wait_for(anext(answers), 1) == 7
    closed.set()
    assert [a async for a in answers] == []


async def test_no_more_are_read_than_may_wait() -> None:
    go, sender, running = asyncio.Event(), Sender(100), 0

    async def answer(i: int) -> int:
        nonlocal running
        running += 1
        await go.wait()
        return i

    answers = aiter(answers_in_order(sender, answer, 3))
    first = asyncio.ensure_future(anext(answers))
    await settle()
    assert (sender.read, running) == (3, 3)
    go.set()
    assert await first == 0
    await settle()
    assert sender.read == 3  # the first is not given on until the next is asked for
    assert len([a async for a in answers]) == 99


async def test_what_a_request_raises_comes_in_its_turn_and_ends_it() -> None:
    ended: list[int] = []

    async def answer(i: int) -> int:
        if i == 1:
            raise ValueError("one")
        try:
            await asyncio.sleep(0 if i == 0 else 60)
        except asyncio.CancelledError:
            ended.append(i)
            raise
        return i

    seen: list[int] = []
    with pytest.raises(ValueError, match="one"):
        await take(answers_in_order(Sender(4), answer, 4), seen)
    assert (seen, sorted(ended)) == ([0], [2, 3])


async def test_what_reading_raises_comes_after_the_answers() -> None:
    async def requests() -> AsyncIterator[int]:
        yield 0
        raise ConnectionError("gone")

    async def answer(i: int) -> int:
        await asyncio.sleep(0.01)
        return i

    seen: list[int] = []
    with pytest.raises(ConnectionError):
        await take(answers_in_order(requests(), answer, 2), seen)
    assert seen == [0]


async def test_who_leaves_leaves_nothing_behind() -> None:
    async def answer(i: int) -> int:
        await asyncio.sleep(0 if i == 0 else 60)
        return i

    answers = answers_in_order(Sender(9), answer, 4)
    assert await anext(aiter(answers)) == 0
    await answers.aclose()  # type: ignore[attr-defined]
    assert asyncio.all_tasks() == {asyncio.current_task()}
