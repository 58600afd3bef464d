"""Outcomes are of one's own answers and experiments, and no more than one may record."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from router.access.access import new_response_id
from router.access.clients import Client, Tenant
from router.access.quotas import Quotas
from router.errors import QuotaExceeded
from router.extensions.experiments.outcomes import paced
from router.v1 import experiments_pb2 as pb
from router.v1 import inference_pb2
from tests.security.worlds import answered, world
from tests.server.helpers import Connect, Start, details, failure, until

pytestmark = pytest.mark.slow
TONE = {"experiment": "experiments/acme-tone", "unit": "anna"}


@pytest.fixture
async def at(tmp_path: Path, start_server: Start, connect: Connect) -> AsyncIterator[SimpleNamespace]:
    async with world(tmp_path, start_server, connect) as made:
        yield made


async def record(at: SimpleNamespace, metadata: Any, key: str = "", **subject: Any) -> str:
    said = pb.Outcome(metric="solved", value=1.0, idempotency_key=key, **subject)
    answer = await at.experiments.RecordOutcome(pb.RecordOutcomeRequest(outcome=said), metadata=metadata)
    return pb.OutcomeStatus.Name(answer.status).removeprefix("OUTCOME_STATUS_")


async def not_found(at: SimpleNamespace, metadata: Any, **subject: Any) -> str:
    error = await failure(record(at, metadata, **subject))
    assert error.code().name == "NOT_FOUND"
    return str(error.details())


async def up(at: SimpleNamespace) -> None:
    """Wait until the server knows that the store is back."""
    at.live.availability.forgive("write")
    await at.live.refresh()
    await until(lambda: at.live.availability.up)


def kept(at: SimpleNamespace) -> list[tuple[str, str, str]]:
    """What clients' outcomes are about, as the store has it."""
    found = (k.outcome for k in at.store.outcomes.values())
    return [(o.response_id, o.experiment, o.unit) for o in found if not o.key.startswith("server:")]


async def test_an_outcome_is_of_an_answer_to_ones_own_tenant(at: SimpleNamespace) -> None:
    mine = (await answered(at, at.clients.mine, "a medical question", "anna")).response_id
    theirs = (await answered(at, at.clients.other, "a legal question", "anna")).response_id
    assert await record(at, at.clients.mine, response_id=mine) == "COUNTED"
    assert await record(at, at.clients.second, response_id=mine) == "COUNTED"
    assert await record(at, at.clients.other, response_id=theirs) == "COUNTED"
    before = kept(at)
    for thief in (at.clients.mine, at.clients.ops):
        told = await not_found(at, thief, response_id=theirs)
        nobodys = await not_found(at, thief, response_id="0" * 40)
        assert told.replace(theirs, "0" * 40) == nobodys
    retagged = theirs[:32] + new_response_id("acme")[32:]
    await not_found(at, at.clients.mine, response_id=retagged)
    await not_found(at, at.clients.mine, response_id=theirs[:32])
    assert [one for one in kept(at) if theirs in one] == [one for one in before if theirs in one]


async def test_an_outcome_of_another_tenants_answer_never_counts_however_late_the_exposure(
    at: SimpleNamespace,
) -> None:
    await answered(at, at.clients.other, "a legal question", "anna")
    (exposure,) = at.store.rows["legal-tone", 1].exposures.values()
    made = new_response_id("bravo")
    await not_found(at, at.clients.mine, response_id=made, key="k")
    await not_found(at, at.clients.other, response_id=made, key="early")
    at.store.expose([replace(exposure, response_id=made)])
    assert at.store.outcomes["acme/k"].places == {}
    assert at.store.outcomes["bravo/early"].places != {}
    assert await record(at, at.clients.other, response_id=made, key="k") == "COUNTED"


async def test_keys_are_a_tenants_own(at: SimpleNamespace) -> None:
    mine = (await answered(at, at.clients.mine, "a medical question", "anna")).response_id
    theirs = (await answered(at, at.clients.other, "a legal question", "anna")).response_id
    assert await record(at, at.clients.mine, "vote-1", response_id=mine) == "COUNTED"
    assert await record(at, at.clients.other, "vote-1", response_id=theirs) == "COUNTED"
    assert await record(at, at.clients.second, "vote-1", response_id=mine) == "DUPLICATE"


async def test_answers_from_before_there_were_tenants_are_anybodys(at: SimpleNamespace) -> None:
    rows = at.store.rows["acme-tone", 1]
    await answered(at, at.clients.mine, "a medical question", "anna")
    ((_, exposure),) = rows.exposures.items()
    rows.exposures["0a" * 16] = exposure
    assert await record(at, at.clients.other, response_id="0a" * 16) == "COUNTED"


async def test_an_outcome_of_a_unit_is_of_an_experiment_that_one_knows_of(at: SimpleNamespace) -> None:
    await answered(at, at.clients.mine, "a medical question", "anna")
    assert await record(at, at.clients.mine, unit=TONE) == "COUNTED"
    assert await record(at, at.clients.ops, unit=TONE) == "COUNTED"
    for client in (at.clients.other, at.clients.blind):
        assert "experiment 'experiments/acme-tone' not found" in await not_found(at, client, unit=TONE)
    assert [one for one in kept(at) if one[1] == "-acme-tone" and one[2].startswith("-")] != []
    assert len([one for one in kept(at) if one[1] == "acme-tone"]) == 2


async def test_a_client_is_not_told_of_an_arm_that_it_has_in_another_s_experiment(
    at: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "router.server.access")
    told = (await answered(at, at.clients.mine, "a medical question", "anna")).decision
    assert (told.experiment, bool(told.arm)) == ("acme-tone", True)
    hidden = await answered(at, at.clients.blind, "a medical question", "anna")
    assert (hidden.decision.experiment, hidden.decision.arm) == ("", "")
    assert hidden.decision.adapter == told.adapter  # it has its arm all the same
    assert hidden.response_id in at.store.rows["acme-tone", 1].exposures
    asked = inference_pb2.RouteRequest(
        input=inference_pb2.Input(text="a medical question"), routing={"unit": "anna"}
    )
    routed = (await at.inference.Route(asked, metadata=at.clients.blind)).decision
    assert (routed.experiment, routed.arm) == ("", "")
    lines = [r.fields for r in caplog.records if r.name == "router.server.access" and "arm" in r.fields]
    assert {(line["client"], line.get("tenant"), line["experiment"]) for line in lines} == {
        ("mine", "acme", "acme-tone"),
        ("blind", "blind", "acme-tone"),
    }


async def test_another_s_plan_is_named_by_no_mistake(at: SimpleNamespace) -> None:
    said = pb.Outcome(metric="solved", value=3.0, response_id="x")
    for metadata, where in ((at.clients.mine, " in experiments/acme-tone"), (at.clients.blind, "")):
        error = await failure(
            at.experiments.RecordOutcome(pb.RecordOutcomeRequest(outcome=said), metadata=metadata)
        )
        assert f"'solved' is a proportion{where}, got 3" in error.details()


async def test_an_experiment_in_the_way_is_not_named_to_who_may_not_know_of_it(at: SimpleNamespace) -> None:
    from tests.extensions.experiments.service.lab import create

    for client, told in (("blind", False), ("ops", True)):
        path = at.clients.path
        path.write_text(path.read_text().replace("experiments = []", 'experiments = ["blind-*"]'))
        at.app.access.look()
        metadata, name = getattr(at.clients, client), f"blind-{client}"
        await at.experiments.CreateExperiment(create(name), metadata=metadata)
        start = pb.StartExperimentRequest(name=f"experiments/{name}")
        error = await failure(at.experiments.StartExperiment(start, metadata=metadata))
        assert error.code().name == "FAILED_PRECONDITION"
        assert ("experiments/acme-tone" in error.details()) == told


# -- How many.


async def test_outcomes_a_second_of_a_tenant(tmp_path: Path, start_server: Start, connect: Connect) -> None:
    more = '[[tenant]]\nid = "acme"\noutcomes_per_second = 1\n'
    async with world(tmp_path, start_server, connect, more=more) as at:
        mine = (await answered(at, at.clients.mine, "a medical question", "anna")).response_id
        turns = (at.clients.mine, at.clients.second)
        recorded, found = 0, None
        while found is None:  # ten at once, and one a second
            try:
                await record(at, turns[recorded % 2], response_id=mine)
            except grpc.aio.AioRpcError as error:
                found = details(error)
            else:
                recorded += 1
        assert recorded >= 10
        assert found["ErrorInfo"].reason == "QUOTA"
        assert found["ErrorInfo"].metadata["quota"] == "tenant.outcomes_per_second"
        assert found["QuotaFailure"].violations[0].subject == "tenant:acme"
        assert 0 < found["RetryInfo"].retry_delay.ToNanoseconds() <= 1e9
        theirs = (await answered(at, at.clients.other, "a legal question", "anna")).response_id
        assert await record(at, at.clients.other, response_id=theirs) == "COUNTED"


async def test_a_day_that_is_used_up_ends_a_stream(
    tmp_path: Path, start_server: Start, connect: Connect
) -> None:
    more = '[[tenant]]\nid = "acme"\noutcomes_per_day = 5\n'
    async with world(tmp_path, start_server, connect, more=more) as at:
        mine = (await answered(at, at.clients.mine, "a medical question", "anna")).response_id
        call = at.experiments.RecordOutcomes(metadata=at.clients.mine)
        said = [pb.Outcome(metric="solved", value=1.0, response_id=mine) for _ in range(3)]
        await call.write(pb.RecordOutcomesRequest(sequence=1, outcomes=said))
        assert len((await call.read()).statuses) == 3
        await call.write(pb.RecordOutcomesRequest(sequence=2, outcomes=said))
        found = details(await failure(call.read()))
        assert found["ErrorInfo"].metadata["quota"] == "tenant.outcomes_per_day"
        assert len(kept(at)) == 3


async def test_what_was_not_stored_costs_the_day_nothing(
    tmp_path: Path, start_server: Start, connect: Connect
) -> None:
    more = '[[tenant]]\nid = "acme"\noutcomes_per_day = 1\n'
    async with world(tmp_path, start_server, connect, more=more) as at:
        mine = (await answered(at, at.clients.mine, "a medical question", "anna")).response_id
        at.store.down = True
        error = await failure(record(at, at.clients.mine, response_id=mine))
        assert details(error)["ErrorInfo"].reason == "STORE_DOWN"
        at.store.down = False
        await up(at)
        assert await record(at, at.clients.mine, response_id=mine) == "COUNTED"
        assert details(await failure(record(at, at.clients.mine, response_id=mine)))["QuotaFailure"]


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


async def read(sizes: Sequence[int], client: Client, clock: Clock) -> list[float]:
    """When each batch of a stream of such batches is read."""
    at: list[float] = []

    async def batches() -> AsyncIterator[pb.RecordOutcomesRequest]:
        for size in sizes:
            at.append(clock.now)
            yield pb.RecordOutcomesRequest(outcomes=[pb.Outcome()] * size)

    with Quotas(clock).call(client) as meter:
        assert [len(batch.outcomes) async for batch in paced(batches(), meter, clock.sleep)] == list(sizes)
    return at


async def test_a_stream_is_slowed_down() -> None:
    clock = Clock()
    client = Client("a", tenant="t", group=Tenant("t", outcomes_per_second=10))
    assert await read([60, 60, 60, 1000, 1], client, clock) == pytest.approx([100, 100, 102, 108, 208])
    assert await read([1000] * 3, Client("b"), clock) == [clock.now] * 3
    with pytest.raises(QuotaExceeded, match="a day"):
        await read([2, 2], Client("c", outcomes_per_day=3), clock)
