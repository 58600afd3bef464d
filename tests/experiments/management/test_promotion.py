from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from router.errors import (
    AdapterRejected,
    FailedPrecondition,
    InvalidRequest,
    StaleEtag,
    StoreDown,
)
from router.experiments.manager import stopped
from router.experiments.model import ArmSpec, Lifecycle, Mode
from router.types import AdapterRef, AdapterState, Override
from tests.experiments.management.conftest import ME
from tests.experiments.plans import plan, router_plan
from tests.fakes import adapter

OLD, NEW = AdapterRef("medical", "1.0.0"), AdapterRef("medical", "1.1.0")


@pytest.fixture
def running(bench: SimpleNamespace) -> SimpleNamespace:
    bench.manager.create("trial", plan(), ME)
    bench.manager.start("trial", "", ME)
    return bench


def default(bench: SimpleNamespace) -> AdapterRef:
    return bench.registry.resolve("medical").ref


@pytest.mark.parametrize("arm", ["", "new"])
def test_a_verdict_promotes(running: SimpleNamespace, arm: str) -> None:
    running.verdicts["new"] = "promote"
    running.clock.now = 9000.0
    done = running.promoter.promote("trial", arm, "", ME, reason="it is better")
    assert (done.default, done.previous, default(running)) == (NEW, OLD, NEW)
    after = done.experiment
    assert (after.state, after.promoted, after.stopped) == (Lifecycle.STOPPED, "new", 9000)
    assert "new was promoted" in after.stop_reason
    entry = running.store.trail("trial")[-1]
    assert (entry.actor, entry.act, entry.reason) == (ME, "promote", "it is better")
    assert entry.detail == {
        "arm": "new",
        "default": NEW.resource,
        "previous": OLD.resource,
        "phase": 1,
        "decision": "promote",
        "rule": "primary-open",
        "text": "p = 0.4",
        "forced": False,
    }
    assert running.promoter.promote("trial", arm, "", ME) == done
    with pytest.raises(FailedPrecondition, match="roll that back"):
        running.promoter.promote("trial", "old", "", ME)
    with pytest.raises(FailedPrecondition, match="was promoted"):
        running.manager.start("trial", "", ME)


@pytest.mark.parametrize("decision", ["undecided", "invalid", "stop for harm"])
def test_other_verdicts_do_not_unless_forced(running: SimpleNamespace, decision: str) -> None:
    running.verdicts["new"] = decision
    for arm in ("", "new"):
        with pytest.raises(FailedPrecondition, match=decision) as caught:
            running.promoter.promote("trial", arm, "", ME)
        assert caught.value.metadata["decision"] == decision
        assert "force" in caught.value.message
    assert default(running) == OLD
    with pytest.raises(InvalidRequest, match="arm: must be named"):
        running.promoter.promote("trial", "", "", ME, force=True)
    running.promoter.promote("trial", "new", "", ME, force=True, reason="a release")
    assert default(running) == NEW
    detail = running.store.trail("trial")[-1].detail
    assert (detail["decision"], detail["forced"]) == (decision, True)


def test_a_verdict_is_proof_to_the_gate(running: SimpleNamespace) -> None:
    running.registry.put(replace(running.registry.get("medical", "1.1.0"), gate="no report"))
    running.verdicts["new"] = "promote"
    running.promoter.promote("trial", "new", "", ME)
    override = running.registry.get("medical").override
    assert (override.by, override.reason.partition(":")[0]) == ("experiments/trial", "arm new")


def test_force_overrules_the_gate_under_the_name_of_who_used_it(running: SimpleNamespace) -> None:
    running.registry.put(replace(running.registry.get("medical", "1.1.0"), gate="no report"))
    running.promoter.promote("trial", "new", "", ME, force=True, reason="ticket 7")
    override = running.registry.get("medical").override
    assert (override.by, override.reason) == (ME, "experiments/trial, arm new: ticket 7")


def test_what_cannot_be_promoted(running: SimpleNamespace) -> None:
    with pytest.raises(InvalidRequest, match="none of the arms: old, new"):
        running.promoter.promote("trial", "newest", "", ME, force=True)
    with pytest.raises(FailedPrecondition, match="is control"):
        running.promoter.promote("trial", "old", "", ME)
    with pytest.raises(StaleEtag):
        running.promoter.promote("trial", "new", "stale", ME, force=True)
    info = running.registry.get("medical", "1.1.0")
    running.registry.put(replace(info, state=AdapterState.QUARANTINED, error="rank 512"))
    with pytest.raises(AdapterRejected):
        running.promoter.promote("trial", "new", "", ME, force=True)
    assert default(running) == OLD


def test_only_a_version_of_the_route(bench: SimpleNamespace) -> None:
    bench.registry.put(adapter("legal", "2.0.0", default=True))
    others = (plan().arms[0], ArmSpec("legal", 0.25, AdapterRef("legal", "2.0.0")), ArmSpec("base", 0.25))
    for name, spec, arm, told in (
        ("one", plan(arms=others), "legal", "no version of the route"),
        ("two", plan(arms=others), "base", "not an adapter version"),
        ("three", router_plan(), "careful", "a router configuration"),
    ):
        bench.manager.create(name, spec, ME)
        with pytest.raises(FailedPrecondition, match="not been started"):
            bench.promoter.promote(name, arm, "", ME, force=True)
        bench.manager.start(name, "", ME)
        with pytest.raises(FailedPrecondition, match=told):
            bench.promoter.promote(name, arm, "", ME, force=True)
        bench.manager.stop(name, "", "", ME)


def test_a_stopped_one_may_be_promoted(running: SimpleNamespace) -> None:
    over = running.manager.stop("trial", "", "done", ME)
    running.verdicts["new"] = "promote"
    done = running.promoter.promote("trial", "", over.etag, ME)
    assert (done.experiment.stop_reason, done.experiment.stopped) == ("done", over.stopped)


def test_rolled_back_to_the_version_before(running: SimpleNamespace) -> None:
    with pytest.raises(FailedPrecondition, match="no arm"):
        running.promoter.roll_back("trial", "", ME)
    running.verdicts["new"] = "promote"
    running.promoter.promote("trial", "", "", ME)
    done = running.promoter.roll_back("trial", "users complain", ME)
    assert (done.default, done.previous, default(running)) == (OLD, NEW, OLD)
    assert (done.experiment.promoted, done.experiment.state) == ("", Lifecycle.STOPPED)
    entry = running.store.trail("trial")[-1]
    assert (entry.act, entry.reason, entry.detail["default"]) == ("roll back", "users complain", OLD.resource)
    with pytest.raises(FailedPrecondition, match="no arm"):
        running.promoter.roll_back("trial", "", ME)
    assert running.manager.start("trial", "", ME).phase.number == 2


def test_a_version_that_never_passed_the_gate_comes_back(running: SimpleNamespace) -> None:
    running.registry.put(replace(running.registry.get("medical", "1.0.0"), gate="no report"))
    running.promoter.promote("trial", "new", "", ME, force=True)
    running.promoter.roll_back("trial", "", ME)
    assert running.registry.get("medical").override.reason == "experiments/trial rolled back"


def test_away_from_a_version_that_broke(running: SimpleNamespace) -> None:
    running.promoter.promote("trial", "new", "", ME, force=True)
    info = running.registry.get("medical", "1.1.0")
    running.registry.put(replace(info, state=AdapterState.QUARANTINED, error="bytes changed"))
    assert running.promoter.roll_back("trial", "", ME).default == OLD
    assert default(running) == OLD


def test_an_override_that_was_there_stays(running: SimpleNamespace) -> None:
    made = Override("1.0.0", "somebody", 1.0, "ticket 3", "no report", "5e" * 32)
    running.registry.put(replace(running.registry.get("medical", "1.0.0"), override=made))
    running.promoter.promote("trial", "new", "", ME, force=True)
    running.promoter.roll_back("trial", "", ME)
    assert running.registry.get("medical", "1.0.0").override == made


def test_what_somebody_else_set_stays(running: SimpleNamespace) -> None:
    running.promoter.promote("trial", "new", "", ME, force=True)
    running.registry.put(adapter("medical", "2.0.0"))
    running.registry.set_default(AdapterRef("medical", "2.0.0"))
    with pytest.raises(FailedPrecondition, match=r"medical@2\.0\.0 by now"):
        running.promoter.roll_back("trial", "", ME)
    running.registry.set_default(OLD)
    assert running.promoter.roll_back("trial", "", ME).experiment.promoted == ""


def test_a_promotion_that_cannot_be_recorded_did_not_happen(
    running: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(*args: object) -> None:
        assert default(running) == NEW
        raise StoreDown("the database cannot be reached")

    monkeypatch.setattr(running.store, "replace", down)
    with pytest.raises(StoreDown):
        running.promoter.promote("trial", "new", "", ME, force=True)
    assert default(running) == OLD


def test_a_guardrail_may_stop_it_first(running: SimpleNamespace) -> None:
    experiment = running.manager.get("trial")
    running.manager.keep(stopped(experiment, 4000.0, "guardrail"), "rule", "stop", "guardrail")
    running.promoter.promote("trial", "new", "", ME, force=True)
    assert running.manager.get("trial").stop_reason == "guardrail"


@pytest.mark.parametrize("force", [False, True])
def test_a_holdout_has_no_version_to_promote(bench: SimpleNamespace, force: bool) -> None:
    arms = (ArmSpec("held", 0.1), ArmSpec("all", 0.9))
    bench.manager.create("all", plan(mode=Mode.HOLDOUT, route="", arms=arms, control="held"), ME)
    bench.manager.start("all", "", ME)
    with pytest.raises(FailedPrecondition, match="no version is to be promoted"):
        bench.promoter.promote("all", "all", "", ME, force=force)
