"""The client of experiments, for threads and for asyncio, against a scripted server."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import pytest

from router.client import AdapterRef, AsyncClient, Client, ClientError
from router.errors import Findings
from router.extensions.experiments.client import (
    Accepted,
    ArmSpec,
    AsyncExperiments,
    Experiments,
    Lifecycle,
    Outcome,
    Recorded,
    SegmentSpec,
    Spec,
    metric,
)
from router.extensions.experiments.messages import (
    plan_message,
    plan_of,
    update_request,
)
from router.extensions.experiments.model import Mode
from tests.extensions.experiments.report.sums import REPORT
from tests.extensions.experiments.scripted import scripted_server

SPEC = Spec(
    hypothesis="1.1.0 helps",
    route="medical",
    arms=(
        ArmSpec("a", 0.5, AdapterRef("medical", "1.0.0")),
        ArmSpec("b", 0.5, AdapterRef("medical", "1.1.0")),
    ),
    control="a",
    primary=metric("thumbs_up", missing="excluded"),
)
FULL = replace(
    SPEC,
    arms=(ArmSpec("a", 0.3), ArmSpec("b", 0.7, AdapterRef("medical", "1.1.0"))),
    guardrails=(
        metric(
            "total_time", "mean", higher_is_better=False, aggregate="mean", missing="excluded", margin=0.1
        ),
        metric("thumbs", "ratio", per="outcomes", missing="zero", covariate=True, margin=0.01),
    ),
    mode=Mode.SHADOW,
    unit="session",
    unit_label="session_id",
    enrolment=0.25,
    namespace="answers",
    slot=(0.25, 0.5),
    margin=0.01,
    alpha=0.1,
    planned_units=900,
    min_units=50,
    min_matured=0.5,
    window=3.5,
    shadow_share=0.5,
    secondary=(metric("minutes", "mean", missing="zero", cap=60, least=1.0),),
    segments=(SegmentSpec("country", ("de", "fr")), SegmentSpec("plan", ("free",))),
    grace=3600.0,
)


@pytest.fixture
def remote() -> Iterator[SimpleNamespace]:
    """A scripted server: `.target`, `.inference`, `.adapters`, `.experiments`."""
    with scripted_server() as server:
        yield server


@pytest.fixture
def client(remote):
    with Client(remote.target, timeout=10) as made:
        yield made


@pytest.mark.parametrize("spec", [SPEC, FULL], ids=["plain", "full"])
def test_a_plan_goes_through_its_message_unchanged(spec):
    assert plan_of(plan_message(spec), Findings()) == spec


def test_an_experiment_lives_from_plan_to_rollback(client, remote):
    made = Experiments(client).create("medical-v2", SPEC)
    assert (made.name, made.state, made.spec, made.created) == (
        "medical-v2",
        Lifecycle.DRAFT,
        SPEC,
        1_000_000.0,
    )
    started = Experiments(client).start("experiments/medical-v2", etag=made.etag)
    assert started.state is Lifecycle.RUNNING
    assert started.phase is not None
    assert (started.phase.variant_salt, started.phase.spec.arms) == ("b", SPEC.arms)
    promoted = Experiments(client).promote("medical-v2", reason="ticket 8")
    assert (promoted.default, promoted.previous) == (
        AdapterRef("medical", "1.1.0"),
        AdapterRef("medical", "1.0.0"),
    )
    assert promoted.experiment.promoted == "new"
    back = Experiments(client).roll_back("medical-v2", reason="complaints")
    assert (back.default, back.previous) == (AdapterRef("medical", "1.0.0"), None)
    stopped = Experiments(client).stop("medical-v2", reason="done")
    assert (stopped.state, stopped.stop_reason) == (Lifecycle.STOPPED, "done")
    Experiments(client).delete("medical-v2")
    with pytest.raises(ClientError) as caught:
        Experiments(client).get("medical-v2")
    assert caught.value.reason == "EXPERIMENT_NOT_FOUND"


def test_only_named_fields_are_updated(client, remote):
    Experiments(client).create("medical-v2", SPEC)
    found = Experiments(client).update("medical-v2", {"enrolment": 0.5, "slot": (0.0, 0.5)}, etag="e1")
    assert found.spec == replace(SPEC, enrolment=0.5, slot=(0.0, 0.5))
    sent = remote.experiments.requests[-1]
    assert list(sent.update_mask.paths) == ["enrolment", "slot"]
    assert sent.experiment.etag == "e1"
    with pytest.raises(TypeError, match="unknown field 'enrollment'"):
        update_request("medical-v2", "", {"enrollment": 0.5})


def test_all_pages_are_listed(client):
    for name in "abcde":
        Experiments(client).create(name, SPEC)
    assert [e.name for e in Experiments(client).list()] == ["a", "b", "c", "d", "e"]


def test_a_report_comes_whole(client):
    Experiments(client).create("medical-v2", SPEC)
    found = Experiments(client).report("medical-v2", 1)
    assert replace(found, experiment=REPORT.experiment) == REPORT


def test_an_outcome_has_a_key_that_makes_retries_safe(client, remote):
    outcome = Outcome("thumbs_up", 1.0, response_id="r-1", time=5.5)
    assert Experiments(client).record_outcome(outcome) is Accepted.COUNTED
    Experiments(client).record_outcome(replace(outcome, key="mine"))
    first, second = remote.experiments.outcomes
    assert len(first.idempotency_key) == 32
    assert (second.idempotency_key, second.time.ToNanoseconds()) == ("mine", 5_500_000_000)
    with pytest.raises(ClientError, match="no response 'nobody'"):
        Experiments(client).record_outcome(replace(outcome, response_id="nobody"))


def test_many_outcomes_go_in_batches_and_each_is_told(client, remote):
    sent = [
        Outcome("m", 2.0 if i == 700 else 1.0, experiment="medical-v2", unit=f"u{i}") for i in range(1200)
    ]
    found = list(Experiments(client).record_outcomes(sent))
    assert len(found) == 1200
    assert found[700] == Recorded(None, "value: must be 0 or 1")
    assert {r.status for i, r in enumerate(found) if i != 700} == {Accepted.COUNTED}
    assert [o.unit.unit for o in remote.experiments.outcomes] == [f"u{i}" for i in range(1200)]


@pytest.fixture
async def experiments(remote):
    async with AsyncClient(remote.target, timeout=10) as made:
        yield AsyncExperiments(made)


async def test_an_experiment_lives_from_plan_to_rollback_with_asyncio(experiments):
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


async def test_outcomes_one_by_one_and_many_with_asyncio(experiments):
    one = Outcome("m", 1.0, response_id="r-1")
    assert await experiments.record_outcome(one) is Accepted.COUNTED
    found = [r async for r in experiments.record_outcomes(replace(one, value=v) for v in (1.0, 2.0, 0.0))]
    assert [r.status for r in found] == [Accepted.COUNTED, None, Accepted.COUNTED]
    with pytest.raises(ClientError):
        await experiments.record_outcome(replace(one, response_id="nobody"))
