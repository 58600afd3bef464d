"""Plans, experiments and reports as messages, both ways."""

from __future__ import annotations

import tomllib
from dataclasses import replace

import hypothesis
import pytest
from google.protobuf.duration_pb2 import Duration

from router.errors import Findings, InvalidRequest
from router.extensions.experiments.messages import (
    PLANNED,
    checked_paths,
    experiment_message,
    merged,
    plan_message,
    plan_of,
    report_message,
    report_of,
)
from router.extensions.experiments.model import (
    Aggregate,
    ArmSpec,
    Experiment,
    ExperimentPhase,
    Kind,
    Lifecycle,
    MetricSpec,
    Mode,
    Spec,
)
from router.extensions.experiments.plan_file import plan_of as file_plan
from router.extensions.experiments.plan_file import plan_toml
from router.extensions.experiments.report.build import report
from router.extensions.experiments.report.model import Report
from router.extensions.experiments.store.tables import from_json, to_json
from router.v1 import experiments_pb2 as pb
from tests.extensions.experiments.plans import plan
from tests.extensions.experiments.report.sums import REPORT, STARTED, SumsStore
from tests.values import any_of

SET_BY_THE_SERVER = {
    "name", "state", "phases", "create_time", "update_time", "stop_time", "stop_reason", "promoted", "etag",
    "warnings",
}  # fmt: skip


def read(message: pb.Experiment) -> Spec:
    found = Findings()
    spec = plan_of(message, found)
    found.check()
    return spec


generated = hypothesis.settings(
    max_examples=25,
    deadline=None,
    phases=[hypothesis.Phase.generate],
    suppress_health_check=list(hypothesis.HealthCheck),
)


@pytest.mark.slow
@generated
@hypothesis.given(any_of(Spec))
def test_every_field_of_a_plan_survives_as_message_document_and_file(spec: Spec) -> None:
    named = tuple(replace(one, values=one.values or ("other",)) for one in spec.segments)
    spec = replace(spec, segments=named)
    message = pb.Experiment.FromString(plan_message(spec).SerializeToString())
    assert read(message) == spec
    whole = Experiment("trial", spec, phases=(ExperimentPhase(1, 2.5, "e", "v", spec),))
    assert from_json(to_json(whole), "") == whole
    filed = replace(spec, arms=(ArmSpec("old", 0.5), *spec.arms))
    assert file_plan(tomllib.loads(plan_toml(filed))) == filed


@pytest.mark.slow
@generated
@hypothesis.given(any_of(Report))
def test_every_field_of_a_report_survives(made: Report) -> None:
    assert carried(made) == made


UNSAID = MetricSpec("", Kind.MEAN)


def test_what_is_not_set_has_the_models_default() -> None:
    bare = Spec("", "", (), "", UNSAID)
    assert read(pb.Experiment(primary={"kind": pb.Experiment.Metric.KIND_MEAN})) == bare
    zero = read(pb.Experiment(primary={"kind": "KIND_MEAN"}, enrolment=0, min_units=0, slot=[0, 0]))
    assert (zero.enrolment, zero.min_units, zero.slot) == (0, 0, (0, 0))


def test_everything_that_cannot_be_read_is_named() -> None:
    message = pb.Experiment(
        route="dental",
        mode=9,
        arms=[{"adapter": "adapters/medical"}, {"adapter": "x"}],
        primary={"aggregate": 9},
        guardrails=[{}],
        slot=[0.5],
    )
    with pytest.raises(InvalidRequest) as caught:
        read(message)
    assert [v.field for v in caught.value.violations] == [
        "experiment.route",
        "experiment.arms[0].adapter",
        "experiment.arms[1].adapter",
        "experiment.primary.kind",
        "experiment.primary.aggregate",
        "experiment.guardrails[0].kind",
        "experiment.mode",
        "experiment.slot",
    ]


@pytest.mark.parametrize("route", ["adapters/base", "adapters/a/versions/1", "adapters/", "medical"])
def test_bad_routes(route: str) -> None:
    with pytest.raises(InvalidRequest, match="route"):
        read(pb.Experiment(route=route, primary={"kind": "KIND_MEAN"}))


def test_a_negative_window_stays_negative() -> None:
    message = pb.Experiment(window=Duration(seconds=-1, nanos=-500_000_000), primary={"kind": "KIND_MEAN"})
    assert read(message).window == -1.5


def test_the_resource_shows_its_life() -> None:
    spec = plan(mode=Mode.SHADOW)
    phase = ExperimentPhase(1, 10.0, "e", "v", spec, 20.0, "started")
    made = Experiment("trial", spec, Lifecycle.STOPPED, (phase,), 5.0, 20.5, 20.0, "done", "new", "etag-3")
    message = experiment_message(made, ("units look odd",))
    assert (message.name, message.state, message.etag) == ("experiments/trial", 3, "etag-3")
    assert (message.create_time.seconds, message.update_time.ToMilliseconds()) == (5, 20_500)
    assert (message.stop_time.seconds, message.stop_reason, message.promoted) == (20, "done", "new")
    assert list(message.warnings) == ["units look odd"]
    (shown,) = message.phases
    assert (shown.number, shown.start_time.seconds, shown.end_time.seconds) == (1, 10, 20)
    assert (shown.enrolment_salt, shown.variant_salt, shown.reason) == ("e", "v", "started")
    assert [arm.name for arm in shown.arms] == ["old", "new"]
    draft = experiment_message(Experiment("trial", spec))
    assert not draft.HasField("stop_time")
    assert not draft.phases


def test_every_field_is_either_planned_or_the_servers() -> None:
    assert set(PLANNED) | SET_BY_THE_SERVER == set(pb.Experiment.DESCRIPTOR.fields_by_name)
    assert not set(PLANNED) & SET_BY_THE_SERVER


def test_an_edit_takes_over_the_fields_of_its_mask_and_no_other() -> None:
    new = pb.Experiment(alpha=0.01, hypothesis="new", enrolment=0, arms=[{"name": "only"}], slot=[0.5, 1])
    found = Findings()
    edited = merged(plan(namespace="a"), new, ("alpha", "enrolment", "namespace", "window"), found)
    assert edited == plan(alpha=0.01, enrolment=0.0, namespace="")
    whole = merged(plan(), plan_message(plan(margin=0.5, arms=())), PLANNED, found)
    found.check()
    assert whole == plan(margin=0.5, arms=())


@pytest.mark.parametrize(
    ("paths", "told"),
    [
        ((), "must name the fields"),
        (("*", "alpha"), "leave the others out"),
        (("state",), "set by the server"),
        (("phases.reason",), "set by the server"),
        (("primary.kind",), "name the whole field, primary"),
        (("colour",), "no field"),
    ],
)
def test_bad_masks(paths: tuple[str, ...], told: str) -> None:
    found = Findings()
    checked_paths(paths, found)
    with pytest.raises(InvalidRequest, match=told):
        found.check()


def test_a_star_is_everything() -> None:
    assert checked_paths(["*"], Findings()) == PLANNED


def test_a_least_value_without_a_cap_is_not_lost_on_the_way() -> None:
    odd = plan(primary=MetricSpec("minutes", Kind.MEAN, aggregate=Aggregate.SUM, least=2.0))
    assert read(plan_message(odd)) == odd


def carried(made: Report) -> Report:
    """There and back; the experiment travels by a conversion of its own."""
    whole = pb.GetReportResponse.FromString(
        report_message(made, pb.Experiment(name="experiments/medical-v2")).SerializeToString()
    )
    return replace(report_of(whole), experiment=made.experiment)


def test_nothing_is_lost_on_the_way():
    assert carried(REPORT) == REPORT


def test_what_is_unset_stays_unset():
    made = report(SumsStore([]), "medical-v2", now=STARTED)
    found = carried(made)
    assert found == made
    assert found.arms[0].primary is None
