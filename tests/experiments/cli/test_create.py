import pytest

from router.cli.errors import CliError
from router.client import AdapterRef
from router.errors import Findings
from router.experiments.cli.create import EXAMPLE, SHORT_BUILT_IN, plan_of, seconds
from router.experiments.design import Design
from router.experiments.model import BUILT_IN, Aggregate, ArmSpec, Kind, Mode
from router.experiments.report.source import design_of
from router.experiments.wire import plans
from router.types import RouterVariant

SHORT = ("--route", "medical", "--metric", "thumbs_up", "--arm", "old=medical@1.0.0")


def sent(remote):
    return plans.plan_of(remote.experiments.requests[0].experiment, Findings())


def test_the_example_is_a_plan_that_can_be_judged(cli, remote, tmp_path):
    path = tmp_path / "plan.toml"
    path.write_text(cli("experiments", "create", "--example").out)
    assert path.read_text() == EXAMPLE
    done = cli("experiments", "create", "medical-v2", path)
    assert done.code == 0, done.err
    spec = sent(remote)
    assert spec.arms[1] == ArmSpec("new", 0.5, AdapterRef("medical", "1.1.0"))
    assert (spec.window, spec.guardrails[0].relative, spec.guardrails[0].margin) == (86_400.0, True, 0.1)
    assert isinstance(design_of(spec), Design)


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
    assert (time.kind, time.aggregate, time.margin, time.relative) == (Kind.MEAN, Aggregate.MEAN, 0.1, True)
    assert (error.kind, error.margin, error.higher_is_better) == (Kind.PROPORTION, 0.01, False)
    assert (spec.control, spec.window) == ("old", 43_200.0)
    assert spec.hypothesis == "thumbs_up is better with new=medical@1.1.0 or none=base:0.2"
    assert [type(r).__name__ for r in remote.experiments.requests] == [
        "CreateExperimentRequest",
        "StartExperimentRequest",
    ]


def test_every_built_in_metric_has_a_short_form():
    assert set(SHORT_BUILT_IN) == set(BUILT_IN)


def test_flags_replace_what_the_file_says(cli, remote, tmp_path):
    (tmp_path / "plan.toml").write_text(EXAMPLE)
    cli("experiments", "create", "b", "plan.toml", "--metric", "minutes:mean", "--set", "enrolment=0.1")
    spec = sent(remote)
    assert (spec.primary.name, spec.primary.kind, spec.enrolment) == ("minutes", Kind.MEAN, 0.1)


def test_router_arms_come_from_a_file():
    made = plan_of(
        {
            "hypothesis": "a lower threshold helps",
            "control": "now",
            "arms": [
                {"name": "now", "weight": 0.5},
                {"name": "low", "weight": 0.5, "router": {"threshold": 0.4, "classifiers": ["linear"]}},
            ],
            "primary": {"name": "thumbs_up", "kind": "proportion"},
            "mode": "bandit",
        }
    )
    assert made.arms[1].router == RouterVariant(threshold=0.4, classifiers=("linear",))
    assert (made.route, made.mode) == ("", Mode.BANDIT)


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
        (("x", *SHORT, "--metric", "a:odd"), "primary.kind: input should be 'proportion', 'mean' or 'ratio'"),
        (("x", *SHORT, "--set", "windw=1d"), "unknown field 'windw'; did you mean 'window'?"),
        (("x", *SHORT, "--set", "window=soon"), "window: must be a time such as 90s, 30min, 12h or 1d"),
        (("x", *SHORT, "--set", "alpha"), "--set takes FIELD=VALUE, not 'alpha'"),
        (("x",), "control: field required"),
    ],
)
def test_a_wrong_plan_is_told_before_anything_is_sent(cli, remote, arguments, told):
    done = cli("experiments", "create", *arguments)
    assert (done.code, remote.experiments.requests) == (2, [])
    assert told in done.err


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("arms = 3", "arms: must be tables, as [[arms]]"),
        ("[[arms]]\nname = 'a'\nwieght = 1", "unknown field 'arms[0].wieght'; did you mean 'weight'?"),
        ("a b", "not valid TOML"),
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


@pytest.mark.parametrize(
    ("text", "expected"), [(5, 5.0), ("90s", 90.0), ("1.5 h", 5400.0), ("30min", 1800.0)]
)
def test_times_have_units(text, expected):
    assert seconds(text, "window") == expected


@pytest.mark.parametrize("wrong", ["1w", "h", "", True])
def test_other_times_are_refused(wrong):
    with pytest.raises(CliError, match="window: must be a time"):
        seconds(wrong, "window")
