from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from router.errors import (
    AlreadyExists,
    ExperimentNotFound,
    FailedPrecondition,
    InvalidRequest,
    StaleEtag,
)
from router.experiments.assignment import AssignmentSalts
from router.experiments.manager import opened
from router.experiments.model import (
    ArmSpec,
    AuditEntry,
    Experiment,
    Exposure,
    Kind,
    Lifecycle,
    MetricSpec,
    Mode,
    SegmentSpec,
    Spec,
    StoredOutcome,
)
from router.types import AdapterRef
from tests.experiments.management.conftest import ME
from tests.experiments.plans import plan, router_plan


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
    assert (phase.enrolment_salt, phase.variant_salt, phase.spec) == ("enrolment-1", "variant-1", plan())
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
        (plan(namespace="a"), router_plan(namespace="a"), "overlaps"),
        (router_plan(), router_plan(), "all routes"),
        (
            plan(namespace="a", slot=(0.0, 0.5)),
            plan(namespace="a", slot=(0.5, 1.0), unit_label="session"),
            "the label 'session'",
        ),
        (plan(namespace="a", slot=(0.0, 0.5)), plan(namespace="a", slot=(0.5, 1.0)), ""),
        (plan(), router_plan(), ""),
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


@pytest.mark.parametrize(
    "change",
    [
        {"primary": MetricSpec("solved", Kind.MEAN)},
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


CLICKS, SECONDS = MetricSpec("clicks", Kind.PROPORTION), MetricSpec("seconds", Kind.MEAN, cap=9.0)


def test_other_secondary_metrics_open_no_phase(bench: SimpleNamespace) -> None:
    bench.manager.create("trial", plan(enrolment=0.1, secondary=(CLICKS,)), ME)
    old = bench.manager.start("trial", "", ME)
    new = bench.manager.update("trial", to(secondary=(SECONDS,)), old.etag, ME)
    assert new.phases == (replace(old.phase, spec=new.spec),)
    assert new.spec == replace(old.spec, secondary=(SECONDS,))
    wider = bench.manager.update("trial", to(secondary=(), enrolment=0.5), "", ME)
    assert (len(wider.phases), wider.phase.spec) == (1, plan(enrolment=0.5))
    acts = bench.store.trail("trial")[-2:]
    assert [a.act for a in acts] == ["secondary", "secondary"]
    assert set(acts[0].detail["fields"]) == {"secondary"}
    json.dumps(dataclasses.asdict(acts[0]))


def test_secondary_metrics_of_what_is_stopped_are_those_of_its_last_phase(bench: SimpleNamespace) -> None:
    bench.manager.create("trial", plan(), ME)
    bench.manager.start("trial", "", ME)
    bench.manager.stop("trial", "", "", ME)
    bench.manager.update("trial", to(alpha=0.01, primary=MetricSpec("better", Kind.PROPORTION)), "", ME)
    kept = bench.manager.update("trial", to(secondary=(SECONDS, plan().primary)), "", ME)
    assert kept.phase.spec == plan(secondary=(SECONDS,))
    assert (kept.spec.alpha, kept.spec.secondary) == (0.01, (SECONDS, plan().primary))
    assert (kept.state, kept.phase.ended) == (Lifecycle.STOPPED, 1000.0)


@pytest.mark.parametrize("change", [{"alpha": 0.01}, {"enrolment": 0.05}, {"segments": (SegmentSpec("l"),)}])
def test_secondary_metrics_with_another_change_open_a_phase(
    bench: SimpleNamespace, change: dict[str, Any]
) -> None:
    bench.manager.create("trial", plan(enrolment=0.1), ME)
    bench.manager.start("trial", "", ME)
    new = bench.manager.update("trial", to(secondary=(CLICKS,), **change), "", ME)
    assert [p.spec.secondary for p in new.phases] == [(), (CLICKS,)]


def test_secondary_metrics_of_a_draft_are_an_edit(bench: SimpleNamespace) -> None:
    bench.manager.create("trial", plan(), ME)
    assert bench.manager.update("trial", to(secondary=(CLICKS,)), "", ME).phases == ()
    assert bench.store.trail("trial")[-1].act == "update"


def test_two_holdouts_run_beside_everything(bench: SimpleNamespace) -> None:
    held = plan(mode=Mode.HOLDOUT, route="", arms=(ArmSpec("held", 0.1), ArmSpec("all", 0.9)), control="held")
    for name, spec in (("one", held), ("two", held), ("trial", plan()), ("routers", router_plan())):
        bench.manager.create(name, spec, ME)
        assert bench.manager.start(name, "", ME).state is Lifecycle.RUNNING


def test_an_edit_of_nothing_changes_nothing(bench: SimpleNamespace) -> None:
    bench.manager.create("trial", plan(), ME)
    running = bench.manager.start("trial", "", ME)
    assert bench.manager.update("trial", to(), "", ME) == running


def test_an_arm_cannot_be_removed_while_it_runs(bench: SimpleNamespace) -> None:
    bench.manager.create("trial", plan(), ME)
    bench.manager.start("trial", "", ME)
    arms = (plan().arms[0], replace(plan().arms[1], name="newer"))
    with pytest.raises(FailedPrecondition, match="arm new cannot be removed"):
        bench.manager.update("trial", to(arms=arms), "", ME)
    bench.manager.stop("trial", "", "", ME)
    assert bench.manager.update("trial", to(arms=arms), "", ME).spec.arms == arms


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


def test_rates_of_earlier_experiments_are_learnt(bench: SimpleNamespace) -> None:
    bench.manager.create("first", plan(window=60.0), ME)
    started = bench.manager.start("first", "", ME)
    assert bench.manager.rates["first"] == {}
    for i in range(80):
        arm = ("old", "new")[i % 2]
        bench.store.expose([Exposure("first", 1, f"u{i}", arm, started.phase.started + 1, f"r{i}", 0.5)])
        bench.store.record(
            [StoredOutcome(f"k{i}", "solved", float(i < 8), started.phase.started + 1, f"r{i}")]
        )
    bench.manager.stop("first", "", "", ME)
    bench.clock.now += 1e6
    bench.manager.create("second", plan(), ME)
    assert bench.manager.rates["second"] == {"solved": 0.1}
    bench.manager.delete("second", "")
    assert "second" not in bench.manager.rates
