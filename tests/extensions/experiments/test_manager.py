"""What may be done with an experiment, and when."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from router.errors import (
    AdapterRejected,
    AlreadyExists,
    ExperimentNotFound,
    FailedPrecondition,
    InvalidRequest,
    StaleEtag,
    StoreDown,
)
from router.extensions.experiments.assignment import AssignmentSalts
from router.extensions.experiments.model import (
    ArmSpec,
    AuditEntry,
    Experiment,
    Kind,
    Lifecycle,
    MetricSpec,
    Mode,
    SegmentSpec,
    Spec,
)
from router.extensions.experiments.phases import opened, stopped
from router.types import AdapterRef, AdapterState, Override
from tests.extensions.experiments.conftest import ME
from tests.extensions.experiments.plans import holdout_plan, plan, said
from tests.fakes import adapter


def to(**fields: Any) -> Callable[[Spec], Spec]:
    return lambda spec: replace(spec, **fields)


def test_create_keeps_a_draft(bench: SimpleNamespace) -> None:
    made = bench.manager.create("trial", plan(), ME)
    assert (made.state, made.phases, made.created, made.updated) == (Lifecycle.DRAFT, (), 1000, 1000)
    assert bench.manager.get("trial") == made
    assert [e.name for e in bench.manager.list()] == ["trial"]
    (entry,) = bench.store.trail("trial")
    assert (entry.actor, entry.act, entry.reason) == (ME, "create", plan().hypothesis)


@pytest.mark.parametrize("name", ["", "Trial", "1st", "a_b", "a/b", "a-", "x" * 64, "ü"])
def test_names_of_experiments(bench: SimpleNamespace, name: str) -> None:
    with pytest.raises(InvalidRequest, match="experiment_id"):
        bench.manager.create(name, plan(), ME)


def test_create_refuses(bench: SimpleNamespace) -> None:
    with pytest.raises(InvalidRequest, match="control"):
        bench.manager.create("trial", plan(control="nobody"), ME)
    bench.manager.create("trial", plan(), ME)
    with pytest.raises(AlreadyExists):
        bench.manager.create("trial", plan(), ME)


def test_start_opens_a_phase_once(bench: SimpleNamespace) -> None:
    made = bench.manager.create("trial", plan(), ME)
    bench.clock.now = 2000.0
    running = bench.manager.start("trial", made.etag, ME)
    phase = running.phase
    assert (running.state, phase.number, phase.started, phase.ended) == (Lifecycle.RUNNING, 1, 2000, None)
    assert (phase.enrolment_salt, phase.variant_salt, phase.spec) == ("enrolment-1", "variant-1", made.spec)
    assert bench.manager.start("trial", made.etag, ME) == running
    assert [e.act for e in bench.store.trail("trial")] == ["create", "start"]


def test_salts_are_secret_and_new_by_default(bench: SimpleNamespace) -> None:
    assert len({AssignmentSalts.fresh().enrolment for _ in range(3)}) == 3


def test_start_needs_adapters_that_are_there(bench: SimpleNamespace) -> None:
    bench.manager.create("trial", plan(), ME)
    bench.registry.remove(AdapterRef("medical", "1.1.0"))
    with pytest.raises(FailedPrecondition, match=r"arms\[1\]\.adapter.*not found"):
        bench.manager.start("trial", "", ME)
    assert bench.manager.get("trial").state is Lifecycle.DRAFT


@pytest.mark.parametrize(
    ("one", "other", "told"),
    [
        (plan(), plan(), "one namespace"),
        (plan(namespace="a", slot=(0.0, 0.5)), plan(namespace="b", slot=(0.5, 1.0)), "one namespace"),
        (plan(namespace="a", slot=(0.0, 0.5)), plan(), "one namespace"),
        (plan(namespace="a", slot=(0.0, 0.6)), plan(namespace="a", slot=(0.5, 1.0)), "overlaps"),
        (plan(namespace="a"), plan(namespace="a", route="base"), "overlaps"),
        (
            plan(namespace="a", slot=(0.0, 0.5)),
            plan(namespace="a", slot=(0.5, 1.0), unit_label="session"),
            "the label 'session'",
        ),
        (plan(namespace="a", slot=(0.0, 0.5)), plan(namespace="a", slot=(0.5, 1.0)), ""),
        (plan(), plan(route="base"), ""),
    ],
)
def test_what_may_run_beside_what(bench: SimpleNamespace, one: Spec, other: Spec, told: str) -> None:
    bench.manager.create("one", one, ME)
    bench.manager.create("other", other, ME)
    bench.manager.start("one", "", ME)
    if not told:
        assert bench.manager.start("other", "", ME).state is Lifecycle.RUNNING
        return
    with pytest.raises(FailedPrecondition, match=told) as caught:
        bench.manager.start("other", "", ME)
    assert "experiments/one" in caught.value.message
    bench.manager.stop("one", "", "", ME)
    assert bench.manager.start("other", "", ME).state is Lifecycle.RUNNING


def test_who_is_started_by_another_server_meanwhile_is_seen(
    bench: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "other"):
        bench.manager.create(name, plan(), ME)
    real = bench.store.replace

    def raced(experiment: Experiment, audit: AuditEntry) -> Experiment:
        monkeypatch.setattr(bench.store, "replace", real)
        rival = bench.store.get("other")
        real(opened(rival, rival.spec, 1.0, "started"), AuditEntry("other", 1.0, "10.0.0.7", "start", ""))
        return real(experiment, audit)

    monkeypatch.setattr(bench.store, "replace", raced)
    with pytest.raises(FailedPrecondition, match="experiments/other"):
        bench.manager.start("one", "", ME)
    assert bench.manager.get("one").state is Lifecycle.STOPPED
    assert "experiments/other" in bench.manager.get("one").stop_reason
    assert [e.act for e in bench.store.trail("one")] == ["create", "start", "stop"]
    assert bench.manager.get("other").state is Lifecycle.RUNNING


def test_an_edit_of_a_draft_opens_nothing(bench: SimpleNamespace) -> None:
    made = bench.manager.create("trial", plan(), ME)
    kept = bench.manager.update("trial", to(alpha=0.01), made.etag, ME)
    assert (kept.spec.alpha, kept.phases, kept.state) == (0.01, (), Lifecycle.DRAFT)
    (entry,) = [e for e in bench.store.trail("trial") if e.act == "update"]
    assert entry.detail == {"fields": {"alpha": {"before": 0.05, "after": 0.01}}}


def test_an_edit_that_does_not_say_what_is_missing_keeps_it(bench: SimpleNamespace) -> None:
    made = bench.manager.create("trial", plan(), ME)
    unsaid = replace(made.spec.primary, missing=None)
    kept = bench.manager.update("trial", to(primary=unsaid, secondary=(MetricSpec("x", Kind.MEAN),)), "", ME)
    assert kept.spec.primary == made.spec.primary


@pytest.mark.parametrize(
    "change",
    [
        {"primary": said(MetricSpec("solved", Kind.MEAN))},
        {"arms": (*plan().arms[:1], ArmSpec("new", 0.5))},
        {"arms": (*(replace(a, weight=0.4) for a in plan().arms), ArmSpec("base", 0.2))},
        {"alpha": 0.01},
        {"hypothesis": "another"},
        {"enrolment": 0.25},
        {"enrolment": 0.75, "alpha": 0.01},
    ],
    ids=lambda change: ",".join(change),
)
def test_an_edit_while_it_runs_opens_a_phase(bench: SimpleNamespace, change: dict[str, Any]) -> None:
    bench.manager.create("trial", plan(enrolment=0.5), ME)
    old = bench.manager.start("trial", "", ME)
    bench.clock.now = 3000.0
    new = bench.manager.update("trial", to(**change), "", ME)
    first, second = new.phases
    assert first == replace(old.phase, ended=3000.0)
    assert (second.number, second.started, second.ended) == (2, 3000, None)
    assert (second.enrolment_salt, second.variant_salt) == ("enrolment-2", "variant-2")
    assert second.spec == new.spec == replace(old.spec, **change)
    entry = bench.store.trail("trial")[-1]
    assert (entry.act, entry.detail["phase"]) == ("new phase", 2)
    assert set(entry.detail["fields"]) == set(change)
    json.dumps(dataclasses.asdict(entry))


def test_raising_the_share_keeps_phase_and_salts(bench: SimpleNamespace) -> None:
    bench.manager.create("trial", plan(enrolment=0.1), ME)
    old = bench.manager.start("trial", "", ME)
    new = bench.manager.update("trial", to(enrolment=0.5), old.etag, ME)
    assert new.phases == (replace(old.phase, spec=new.spec),)
    assert (new.spec.enrolment, new.etag != old.etag) == (0.5, True)
    assert bench.store.trail("trial")[-1].act == "widen"


CLICKS, SECONDS = (
    said(MetricSpec("clicks", Kind.PROPORTION)),
    said(MetricSpec("seconds", Kind.MEAN, cap=9.0)),
)


@pytest.mark.parametrize(
    "change", [{}, {"alpha": 0.01}, {"enrolment": 0.05}, {"segments": (SegmentSpec("l", ("v",)),)}]
)
def test_secondary_metrics_open_a_phase(bench: SimpleNamespace, change: dict[str, Any]) -> None:
    bench.manager.create("trial", plan(enrolment=0.1), ME)
    bench.manager.start("trial", "", ME)
    new = bench.manager.update("trial", to(secondary=(CLICKS,), **change), "", ME)
    assert [p.spec.secondary for p in new.phases] == [(), (CLICKS,)]


def test_secondary_metrics_of_a_draft_are_an_edit(bench: SimpleNamespace) -> None:
    bench.manager.create("trial", plan(), ME)
    assert bench.manager.update("trial", to(secondary=(CLICKS,)), "", ME).phases == ()
    assert bench.store.trail("trial")[-1].act == "update"


def test_two_holdouts_run_beside_everything(bench: SimpleNamespace) -> None:
    held = holdout_plan()
    for name, spec in (("one", held), ("two", held), ("trial", plan())):
        bench.manager.create(name, spec, ME)
        assert bench.manager.start(name, "", ME).state is Lifecycle.RUNNING


def test_an_edit_of_nothing_changes_nothing(bench: SimpleNamespace) -> None:
    bench.manager.create("trial", plan(), ME)
    running = bench.manager.start("trial", "", ME)
    assert bench.manager.update("trial", to(), "", ME) == running


def test_an_arm_is_removed_in_a_new_phase(bench: SimpleNamespace) -> None:
    bench.manager.create("trial", plan(), ME)
    bench.manager.start("trial", "", ME)
    arms = (plan().arms[0], replace(plan().arms[1], name="newer"))
    with pytest.raises(FailedPrecondition, match="ends phase 1"):
        bench.manager.update("trial", to(arms=arms), "", ME, new_phase=False)
    assert [p.spec.arms for p in bench.manager.update("trial", to(arms=arms), "", ME).phases][1] == arms


def test_an_edit_must_be_right_and_in_nobodys_way(bench: SimpleNamespace) -> None:
    for name, slot in (("one", (0.0, 0.5)), ("other", (0.5, 1.0))):
        bench.manager.create(name, plan(namespace="a", slot=slot), ME)
        bench.manager.start(name, "", ME)
    with pytest.raises(InvalidRequest, match="alpha"):
        bench.manager.update("one", to(alpha=3.0), "", ME)
    with pytest.raises(FailedPrecondition, match="overlaps"):
        bench.manager.update("one", to(slot=(0.0, 0.7)), "", ME)


def test_stale_etags(bench: SimpleNamespace) -> None:
    old = bench.manager.create("trial", plan(), ME).etag
    bench.manager.update("trial", to(alpha=0.01), old, ME)
    for call in (
        lambda: bench.manager.update("trial", to(alpha=0.02), old, ME),
        lambda: bench.manager.start("trial", old, ME),
        lambda: bench.manager.delete("trial", old),
    ):
        with pytest.raises(StaleEtag, match="read it again"):
            call()
    running = bench.manager.start("trial", "", ME)
    with pytest.raises(StaleEtag):
        bench.manager.stop("trial", old, "", ME)
    assert bench.manager.stop("trial", running.etag, "", ME).state is Lifecycle.STOPPED


def test_stop_ends_the_phase_once(bench: SimpleNamespace) -> None:
    bench.manager.create("trial", plan(), ME)
    with pytest.raises(FailedPrecondition, match="not been started"):
        bench.manager.stop("trial", "", "", ME)
    bench.manager.start("trial", "", ME)
    bench.clock.now = 5000.0
    over = bench.manager.stop("trial", "", "summer", ME)
    assert (over.state, over.stopped, over.stop_reason) == (Lifecycle.STOPPED, 5000, "summer")
    assert over.phase.ended == 5000
    assert bench.manager.stop("trial", "", "winter", ME) == over


def test_a_restart_is_a_new_phase(bench: SimpleNamespace) -> None:
    bench.manager.create("trial", plan(), ME)
    bench.manager.start("trial", "", ME)
    bench.manager.stop("trial", "", "", ME)
    again = bench.manager.start("trial", "", ME)
    assert [p.variant_salt for p in again.phases] == ["variant-1", "variant-2"]
    assert (again.stopped, again.stop_reason, again.phase.reason) == (None, "", "restarted")


def test_a_running_one_cannot_be_deleted(bench: SimpleNamespace) -> None:
    bench.manager.create("trial", plan(), ME)
    bench.manager.start("trial", "", ME)
    with pytest.raises(FailedPrecondition, match="stop it first"):
        bench.manager.delete("trial", "")
    bench.manager.stop("trial", "", "", ME)
    bench.manager.delete("trial", "")
    with pytest.raises(ExperimentNotFound):
        bench.manager.get("trial")


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
