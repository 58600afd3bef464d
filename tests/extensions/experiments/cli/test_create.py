import pytest

from router.client import AdapterRef
from router.errors import Findings
from router.extensions.experiments import messages as plans
from router.extensions.experiments.model import (
    Aggregate,
    ArmSpec,
    Kind,
    MetricSpec,
    Mode,
    SegmentSpec,
)
from router.extensions.experiments.plan_file import example_plan, plan_of
from router.extensions.experiments.report.source import design_of
from router.extensions.experiments.verdict import ExperimentDesign

SHORT = ("--metric", "thumbs_up", "--arm", "old=medical@1.0.0")


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
        *("experiments", "create", "medical-v2", *SHORT),
        *("--arm", "new=medical@1.1.0", "--arm", "none=base", "--split", "40/40/20"),
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
    assert (spec.route, spec.control, spec.window) == ("medical", "old", 43_200.0)
    assert spec.hypothesis == "thumbs_up is better with new=medical@1.1.0 or none=base"
    assert [type(r).__name__ for r in remote.experiments.requests] == [
        "CreateExperimentRequest",
        "StartExperimentRequest",
    ]


@pytest.mark.parametrize(
    ("arms", "route"),
    [(("old=base", "new=medical@1.1.0"), "medical"), (("old=base", "new=base"), "base")],
)
def test_the_route_is_the_adapter_of_the_arms(cli, remote, arms, route):
    words = [word for arm in arms for word in ("--arm", arm)]
    done = cli("experiments", "create", "x", *words, "--metric", "thumbs_up", "--set", "equal_arms=true")
    assert done.code == 0, done.err
    assert (sent(remote).route, [arm.weight for arm in sent(remote).arms]) == (route, [0.5, 0.5])


def test_a_holdout_comes_from_a_file():
    arms = [{"name": "held", "weight": 0.1}, {"name": "all", "weight": 0.9}]
    primary = {"name": "thumbs_up", "kind": "proportion"}
    made = plan_of({"hypothesis": "", "control": "held", "arms": arms, "primary": primary, "mode": "holdout"})
    assert (made.mode, made.route) == (Mode.HOLDOUT, "")


@pytest.mark.parametrize(
    ("text", "name", "kind"),
    [
        ("solved", "solved", Kind.PROPORTION),
        ("mean:minutes", "minutes", Kind.MEAN),
        ("ratio:cost", "cost", Kind.RATIO),
        ("total_time", "total_time", Kind.MEAN),
        ("mean:total_time", "total_time", Kind.MEAN),
        ("total_time_over_4s", "total_time_over_4s", Kind.PROPORTION),
    ],
)
def test_a_metric_in_short(cli, remote, text, name, kind):
    arms = ("--arm", "old=medical@1.0.0", "--arm", "new=medical@1.1.0")
    cli("experiments", "create", "x", "--metric", text, *arms)
    assert (sent(remote).primary.name, sent(remote).primary.kind) == (name, kind)


def test_flags_replace_what_the_file_says(cli, remote, tmp_path):
    (tmp_path / "plan.toml").write_text(example_plan())
    flags = ("--metric", "mean:minutes", "--split", "0.75/0.25", "--set", "enrolment=0.1")
    done = cli("experiments", "create", "b", "plan.toml", *flags)
    assert done.code == 0, done.err
    spec = sent(remote)
    assert (spec.primary.name, spec.primary.kind, spec.enrolment) == ("minutes", Kind.MEAN, 0.1)
    assert [arm.weight for arm in spec.arms] == [0.75, 0.25]
    assert spec.secondary[0].name == "messages"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "an experiment needs a NAME"),
        (("x", "--arm", "old"), "--arm takes NAME=ADAPTER@VERSION or NAME=base, not 'old'"),
        (
            ("x", *SHORT, "--arm", "new=medical"),
            "arms[1].adapter: must be NAME@VERSION or base, not 'medical'",
        ),
        (("x", *SHORT, "--guardrail", "error"), "--guardrail takes METRIC=MARGIN"),
        (("x", *SHORT, "--guardrail", "error=much"), "--guardrail: 'much' is not a number"),
        (
            ("x", *SHORT, "--metric", "odd:a"),
            "primary.kind: must be 'proportion', 'mean' or 'ratio', got 'odd'",
        ),
        (("x", *SHORT, "--set", "windw=1d"), "windw: unknown field; did you mean 'window'?"),
        (("x", *SHORT, "--set", "window=soon"), "window: must be a time such as 90s, 30min, 12h or 1d"),
        (("x", *SHORT, "--set", "alpha"), "--set takes FIELD=VALUE, not 'alpha'"),
        (("x", *SHORT, "--split", "90/5/5"), "split: has 3 weights, and there are 1 arms"),
        (("x", *SHORT, "--split", "90/20"), "split: the shares add up to 110 instead of 100 (or 1)"),
        (("x", *SHORT, "--split", "90"), "split: must be shares above 0 such as 90/10"),
        (("x", *SHORT, "--split", "90/-1"), "split: must be shares above 0"),
        (("x", *SHORT, "--split", "a/b"), "split: must be shares above 0"),
        (("x", *SHORT, "--split", "1e308/1e308"), "split: the shares add up to inf instead of 100"),
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


def test_a_split_of_what_are_no_arms_is_told(cli, remote, tmp_path):
    (tmp_path / "plan.toml").write_text("arms = [3, 4]")
    done = cli("experiments", "create", "x", "plan.toml", "--split", "90/10")
    assert (done.code, "arms[0]: must be a table" in done.err) == (2, True)


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
    cli("experiments", "update", "x", "--set", "margin=0.1")
    assert remote.experiments.requests[-1].HasField("new_phase")
    assert not remote.experiments.requests[-1].new_phase
    done = cli("experiments", "update", "x", "--set", "margin=0.2", "--new-phase")
    assert done.code == 0, done.err
    assert remote.experiments.requests[-1].new_phase


def test_update_by_a_file_of_some_fields(cli, remote, tmp_path):
    cli("experiments", "create", "x", *SHORT, "--arm", "new=medical@1.1.0")
    (tmp_path / "more.toml").write_text(
        "[[secondary]]\nname = 'total_time'\n[[segments]]\nlabel = 'plan'\nvalues = ['free']\n"
    )
    done = cli("experiments", "update", "x", "more.toml", "--set", "alpha=0.01")
    assert done.code == 0, done.err
    assert list(remote.experiments.requests[-1].update_mask.paths) == ["secondary", "segments", "alpha"]
    made = plans.plan_of(remote.experiments.kept["experiments/x"], Findings())
    assert [metric.name for metric in made.secondary] == ["total_time"]
    assert (made.segments, made.alpha) == ((SegmentSpec("plan", ("free",)),), 0.01)
    cli("experiments", "update", "x", "--set", "secondary=[]")
    made = plans.plan_of(remote.experiments.kept["experiments/x"], Findings())
    assert (made.secondary, made.segments) == ((), (SegmentSpec("plan", ("free",)),))
