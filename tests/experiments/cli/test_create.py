import pytest

from router.client import AdapterRef
from router.errors import Findings
from router.experiments import messages as plans
from router.experiments.cli.metric_flags import guardrail_from_flag, metric_from_flag
from router.experiments.model import (
    Aggregate,
    ArmSpec,
    Kind,
    MetricSpec,
    Mode,
    SegmentSpec,
)
from router.experiments.plan_file import example_plan, plan_of
from router.experiments.report.source import design_of
from router.experiments.verdict import ExperimentDesign

SHORT = ("--route", "medical", "--metric", "thumbs_up", "--arm", "old=medical@1.0.0")


def sent(remote):
    return plans.plan_of(remote.experiments.requests[0].experiment, Findings())


def test_the_example_is_a_plan_that_can_be_judged(cli, remote, tmp_path):
    path = tmp_path / "plan.toml"
    path.write_text(cli("experiments", "create", "--example").out)
    assert path.read_text() == example_plan()
    done = cli("experiments", "create", "medical-v2", path)
    assert done.code == 0, done.err
    spec = sent(remote)
    assert spec.arms[1] == ArmSpec("new", 0.5, AdapterRef("medical", "1.1.0"))
    assert spec.window == 86_400.0
    slow = MetricSpec("total_time_over_4s", Kind.PROPORTION, False, margin=0.02)
    assert spec.guardrails[0] == slow
    assert (spec.secondary[0].name, spec.secondary[0].cap) == ("messages", 100.0)
    assert spec.segments == (SegmentSpec("country", ("de", "fr")),)
    assert isinstance(design_of(spec), ExperimentDesign)


def test_flags_alone_make_a_plan(cli, remote):
    done = cli(
        *(
            "experiments",
            "create",
            "medical-v2",
            *SHORT,
            "--arm",
            "new=medical@1.1.0",
            "--arm",
            "none=base:0.2",
        ),
        *("--guardrail", "total_time=10%", "--guardrail", "error=0.01", "--set", "window=12h", "--start"),
    )
    assert done.code == 0, done.err
    spec = sent(remote)
    assert [(a.name, a.weight, a.adapter and str(a.adapter)) for a in spec.arms] == [
        ("old", 0.4, "medical@1.0.0"),
        ("new", 0.4, "medical@1.1.0"),
        ("none", 0.2, None),
    ]
    time, error = spec.guardrails
    assert (time.kind, time.combined, time.margin, time.relative) == (Kind.MEAN, Aggregate.MEAN, 0.1, True)
    assert (error.kind, error.margin, error.higher_is_better) == (Kind.PROPORTION, 0.01, False)
    assert (spec.control, spec.window) == ("old", 43_200.0)
    assert spec.hypothesis == "thumbs_up is better with new=medical@1.1.0 or none=base:0.2"
    assert [type(r).__name__ for r in remote.experiments.requests] == [
        "CreateExperimentRequest",
        "StartExperimentRequest",
    ]


def test_caps_segments_and_secondary_metrics_from_flags(cli, remote):
    done = cli(
        *("experiments", "create", "x", *SHORT, "--arm", "new=medical@1.1.0", "--split", "90/10"),
        *("--metric", "mean:minutes", "--guardrail", "total_time=10%", "--secondary", "mean:messages"),
        *("--secondary", "clicked", "--segment", "country=de, fr", "--segment", "plan"),
        *("--cap", "minutes=60", "--cap", "messages=9.5", "--set", "grace=1h"),
    )
    assert done.code == 0, done.err
    spec = sent(remote)
    assert [arm.weight for arm in spec.arms] == [0.9, 0.1]
    assert (spec.primary.name, spec.primary.kind, spec.primary.cap) == ("minutes", Kind.MEAN, 60.0)
    assert spec.guardrails[0].cap is None
    assert spec.secondary == (
        MetricSpec("messages", Kind.MEAN, cap=9.5),
        MetricSpec("clicked", Kind.PROPORTION),
    )
    assert spec.segments == (SegmentSpec("country", ("de", "fr")), SegmentSpec("plan"))
    assert spec.grace == 3600.0


def test_a_split_of_a_file_is_replaced(cli, remote, tmp_path):
    (tmp_path / "plan.toml").write_text(example_plan())
    done = cli("experiments", "create", "b", "plan.toml", "--split", "0.75/0.25", "--cap", "messages=7")
    assert done.code == 0, done.err
    spec = sent(remote)
    assert [arm.weight for arm in spec.arms] == [0.75, 0.25]
    assert spec.secondary[0].cap == 7.0


def test_a_holdout_comes_from_a_file():
    arms = [{"name": "held", "weight": 0.1}, {"name": "all", "weight": 0.9}]
    primary = {"name": "thumbs_up", "kind": "proportion"}
    made = plan_of({"hypothesis": "", "control": "held", "arms": arms, "primary": primary, "mode": "holdout"})
    assert (made.mode, made.route) == (Mode.HOLDOUT, "")


@pytest.mark.parametrize(
    ("text", "name", "kind"),
    [
        ("solved", "solved", "proportion"),
        ("mean:minutes", "minutes", "mean"),
        ("minutes:mean", "minutes", "mean"),
        ("ratio:cost", "cost", "ratio"),
        ("mean", "mean", "proportion"),
        ("total_time", "total_time", "mean"),
        ("mean:total_time", "total_time", "mean"),
        ("total_time_over_4s", "total_time_over_4s", "proportion"),
    ],
)
def test_a_metric_in_short(text, name, kind):
    found = metric_from_flag(text)
    assert (found["name"], found["kind"]) == (name, kind)


def test_a_guardrail_that_has_to_improve():
    found = guardrail_from_flag("serving_cost=better")
    assert found == metric_from_flag("serving_cost") | {"improve": True}
    assert found["kind"] == "mean"


def test_flags_replace_what_the_file_says(cli, remote, tmp_path):
    (tmp_path / "plan.toml").write_text(example_plan())
    cli("experiments", "create", "b", "plan.toml", "--metric", "minutes:mean", "--set", "enrolment=0.1")
    spec = sent(remote)
    assert (spec.primary.name, spec.primary.kind, spec.enrolment) == ("minutes", Kind.MEAN, 0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "an experiment needs a NAME"),
        (("x", "--arm", "old"), "--arm takes NAME=ADAPTER@VERSION[:WEIGHT] or NAME=base, not 'old'"),
        (
            ("x", *SHORT, "--arm", "new=medical"),
            "arms[1].adapter: must be NAME@VERSION or base, not 'medical'",
        ),
        (("x", *SHORT, "--arm", "new=base:much"), "--arm: 'much' is not a number"),
        (("x", *SHORT, "--guardrail", "error"), "--guardrail takes METRIC=MARGIN"),
        (
            ("x", *SHORT, "--metric", "a:odd"),
            "primary.kind: must be 'proportion', 'mean' or 'ratio', got 'odd'",
        ),
        (("x", *SHORT, "--set", "windw=1d"), "windw: unknown field; did you mean 'window'?"),
        (("x", *SHORT, "--set", "window=soon"), "window: must be a time such as 90s, 30min, 12h or 1d"),
        (("x", *SHORT, "--set", "alpha"), "--set takes FIELD=VALUE, not 'alpha'"),
        (("x", *SHORT, "--set", "grace=later"), "grace: must be a time such as 90s"),
        (("x", *SHORT, "--cap", "minutes"), "--cap takes METRIC=VALUE, such as total_time=60, not 'minutes'"),
        (("x", *SHORT, "--cap", "thumbs_up=much"), "--cap: 'much' is not a number"),
        (
            ("x", *SHORT, "--cap", "thumbs=3"),
            "no metric of the plan is called 'thumbs'; there are: thumbs_up",
        ),
        (("x", *SHORT, "--segment", "country="), "--segment takes LABEL or LABEL=a,b,c, not 'country='"),
        (("x", *SHORT, "--segment", "=a"), "--segment takes LABEL"),
        (("x", *SHORT, "--split", "90/5/5"), "--split 90/5/5 has 3 weights, and there are 1 arms"),
        (
            ("x", *SHORT, "--arm", "new=medical@1.1.0", "--split", "90/20"),
            "--split 90/20: the shares add up to 110 instead of 100 (or 1); in these proportions: 81.8/18.2",
        ),
        (("x", *SHORT, "--split", "1/1/1"), "in these proportions: 33.3/33.3/33.4"),
        (("x", *SHORT, "--split", "90"), "--split takes shares above 0 such as 90/10"),
        (("x", *SHORT, "--split", "90/-1"), "--split takes shares above 0"),
        (("x", *SHORT, "--split", "a/b"), "--split: 'a' is not a number"),
        (("x", *SHORT, "--arm", "n=base:0.2", "--split", "9/1"), "weights are given twice"),
        (("x", *SHORT, "--secondary", "a:odd"), "secondary[0].kind: must be 'proportion'"),
        (("x",), "control: must be set"),
    ],
)
def test_a_wrong_plan_is_told_before_anything_is_sent(cli, remote, arguments, told):
    done = cli("experiments", "create", *arguments)
    assert (done.code, remote.experiments.requests) == (2, [])
    assert told in done.err


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("arms = 3", "arms: must be a list"),
        ("[[arms]]\nname = 'a'\nwieght = 1", "arms[0].wieght: unknown field; did you mean 'weight'?"),
        ("a b", "not valid TOML"),
        ("secondary = 3", "secondary: must be a list"),
        ("segments = ['country']", "segments[0]: must be a table"),
        ("[[segments]]\nlable = 'a'", "segments[0].lable: unknown field; did you mean 'label'?"),
        ("[[secondary]]\ncpa = 3", "secondary[0].cpa: unknown field; did you mean 'cap'?"),
    ],
)
def test_a_wrong_file_is_told(cli, remote, tmp_path, text, told):
    (tmp_path / "plan.toml").write_text(text)
    done = cli("experiments", "create", "x", "plan.toml")
    assert done.code == 2
    assert told in done.err


def test_bad_fields_of_the_server_are_told_by_name(cli, remote):
    assert cli("experiments", "create", "x", "no-such-file.toml").code == 1


def test_update_sends_only_what_changes(cli, remote):
    cli("experiments", "create", "x", *SHORT, "--arm", "new=medical@1.1.0")
    done = cli("experiments", "update", "x", "--set", "enrolment=0.5", "--set", "window=2h")
    assert done.code == 0, done.err
    assert list(remote.experiments.requests[-1].update_mask.paths) == ["enrolment", "window"]
    assert "enrolment   50.0% of units" in done.out
    assert "window      2 hours for outcomes" in done.out
    done = cli("experiments", "update", "x")
    assert (done.code, "nothing to change" in done.err) == (2, True)


def test_update_opens_a_new_phase_only_when_asked_to(cli, remote):
    cli("experiments", "create", "x", *SHORT, "--arm", "new=medical@1.1.0")
    cli("experiments", "update", "x", "--split", "90/10")
    assert remote.experiments.requests[-1].HasField("new_phase")
    assert not remote.experiments.requests[-1].new_phase
    done = cli("experiments", "update", "x", "--split", "90/10", "--new-phase")
    assert done.code == 0, done.err
    assert remote.experiments.requests[-1].new_phase


@pytest.mark.slow
def test_update_of_secondary_metrics_caps_and_segments(cli, remote):
    cli("experiments", "create", "x", *SHORT, "--arm", "new=medical@1.1.0", "--secondary", "mean:messages")
    done = cli("experiments", "update", "x", "--secondary", "clicked")
    assert done.code == 0, done.err
    assert list(remote.experiments.requests[-1].update_mask.paths) == ["secondary"]
    cli("experiments", "update", "x", "--secondary", "mean:messages", "--segment", "plan")
    assert list(remote.experiments.requests[-1].update_mask.paths) == ["secondary", "segments"]
    done = cli("experiments", "update", "x", "--cap", "messages=9")
    assert done.code == 0, done.err
    assert list(remote.experiments.requests[-1].update_mask.paths) == ["secondary"]
    done = cli("experiments", "update", "x", "--split", "90/10")
    assert done.code == 0, done.err
    assert list(remote.experiments.requests[-1].update_mask.paths) == ["arms"]
    done = cli("experiments", "update", "x", "--set", "secondary=[]")
    made = plans.plan_of(remote.experiments.kept["experiments/x"], Findings())
    assert (made.secondary, [arm.weight for arm in made.arms]) == ((), [0.9, 0.1])
    assert made.segments == (SegmentSpec("plan"),)
    done = cli("experiments", "update", "x", "--cap", "other=9")
    assert (done.code, "there are: thumbs_up" in done.err) == (2, True)
