"""The page of a report: whole, valid, small, and needing nothing else."""

import math
import re
import tomllib
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from router.extensions.experiments.assignment import holdout_problem
from router.extensions.experiments.model import ArmSpec, Experiment, MetricSpec, Mode, NoInterval
from router.extensions.experiments.page import page
from router.extensions.experiments.plan_file import plan_of
from router.extensions.experiments.plans import Known, chosen, plan_problems
from router.extensions.experiments.report.build import report
from router.extensions.experiments.report.model import MetricReport, SegmentReport
from router.types import AdapterInfo, AdapterRef, AdapterState
from tests.commands import cli, own_folder, remote
from tests.extensions.experiments.example_report import example
from tests.extensions.experiments.report.sums import (
    LONG_AFTER,
    REPORT,
    SPEC,
    STARTED,
    SumsStore,
    both,
    bucket,
    running,
)

__all__ = ["cli", "own_folder", "remote"]

MOST_BYTES = 400_000


@pytest.fixture(scope="module")
def whole():
    """A report with every part."""
    return example()


class Page(HTMLParser):
    """What a page is made of; tags must nest."""

    VOID = ("meta", "link", "br", "img")

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.headings = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


def test_the_page_needs_nothing_else(cli, remote, tmp_path):
    cli(
        *("experiments", "create", "medical-v2", "--metric", "success"),
        *("--arm", "control=medical@1.0.0", "--arm", "new=medical@1.1.0", "--start"),
    )
    done = cli("experiments", "report", "medical-v2", "--html", tmp_path / "report.html")
    assert done.out.splitlines()[-1] == f"page: {tmp_path / 'report.html'}"
    stands_alone(text := (tmp_path / "report.html").read_text(encoding="utf-8"))
    assert Page(text).tags.count("svg") == 2  # two ranges


@pytest.mark.slow
def test_a_page_of_everything_needs_nothing_else(whole):
    stands_alone(page(whole))


def stands_alone(text):
    found = Page(text)
    assert not {"script", "link", "img", "iframe", "object"} & set(found.tags)
    assert not [name for name, _ in found.attributes if name in ("src", "href") or name.startswith("on")]
    assert not re.search(r"https?:|url\((?!#)|@import", text)
    ids = [value for name, value in found.attributes if name == "id"]
    assert len(ids) == len(set(ids))


@pytest.mark.slow
def test_texts_from_outside_are_escaped():
    text = page(REPORT)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    arms = (SPEC.arms[0], ArmSpec("<b>", 0.5))
    made = replace(SPEC, arms=arms, hypothesis="<i>x</i>")
    buckets = [replace(b, arm="<b>" if b.arm == "new" else b.arm) for b in both(500, 510, hours=5)]
    text = page(report(SumsStore(buckets, running(made)), "medical-v2", now=LONG_AFTER))
    assert "<b>" not in text
    assert "<i>" not in text


def test_the_page_tells_all_parts():
    assert Page(page(REPORT)).headings == [
        "PROMOTE new",
        "Differences from control; success decides",
        "Arms",
    ]


def test_the_first_screen_has_verdict_difference_certainty_units_and_risk():
    verdict = page(REPORT).split('aria-label="Verdict"')[1].split("</section>")[0]
    assert re.findall("<dt>([^<]*)</dt>", verdict) == [
        "Difference",
        "How sure",
        "Users so far",
        "Risk if promoted now",
    ]
    assert "<dd>none, success is at least 4.2 points better</dd>" in verdict


def test_statistics_are_behind_a_fold():
    shown, folded = page(REPORT).split('<details class="card" id="statistics">', 1)
    assert "+7.5 points (4.2 to 12.4) ✓ better" in shown
    assert not re.search(
        r"p-value|primary-better|asymptotic|sample-ratio|Holm", re.sub(r"(?s)<style>.*?</style>", "", shown)
    )
    assert "primary-better" in folded


def test_a_page_of_nothing_yet():
    draft = report(SumsStore([], Experiment("draft", SPEC)), "draft", now=STARTED)
    assert Page(page(draft)).headings == ["NOT STARTED", "Arms"]
    assert "NOT STARTED<span>: no user takes part yet.</span>" in page(draft)
    empty = report(SumsStore([]), "medical-v2", now=STARTED)
    assert "All 5 checks of the data are fine" in page(empty)


def test_a_failed_check_stands_at_the_top():
    buckets = [*both(1000, 1150), bucket("new", 600, 300, at=1)]
    text = page(report(SumsStore(buckets), "medical-v2", now=LONG_AFTER))
    verdict = text.split('class="card ruling bad"')[1].split("</section>")[0]
    assert "The arms do not have their planned shares of units" in verdict


def test_several_arms_have_their_rulings_and_colours():
    arms = (
        *(replace(a, weight=0.34) for a in SPEC.arms),
        ArmSpec("base", 0.32, AdapterRef("medical", "1.2.0")),
    )
    buckets = [*both(1000, 1010), bucket("base", 1900, 700)]
    text = page(report(SumsStore(buckets, running(replace(SPEC, arms=arms))), "medical-v2", now=LONG_AFTER))
    assert '<td data-label="arm" class="arm c2">base</td>' in text
    assert '<span class="badge bad">✗ worse</span>' in text  # a mark and a word, not a colour alone


def crowded(treatments=3, values=12, labels=3, metrics=10):
    """As much as a report may hold."""
    spec = replace(
        SPEC,
        arms=(SPEC.arms[0], *(ArmSpec(f"treatment-{i}", 0.15) for i in range(treatments))),
        secondary=tuple(MetricSpec(f"metric_number_{i}", SPEC.primary.kind) for i in range(metrics)),
    )
    one = replace(REPORT.arms[0].primary, alpha=0.05 / 90)
    effects = {f"a value of some length {i}": one for i in range(values)}
    segments = tuple(SegmentReport(f"label-{i}", effects, 0.5, False) for i in range(labels))
    named = tuple(replace(one, metric=metric.name) for metric in spec.secondary)
    arms = tuple(
        replace(REPORT.arms[0], arm=arm.name, secondary=named, segments=segments) for arm in spec.arms[1:]
    )
    return replace(REPORT, experiment=running(spec), arms=arms, time=LONG_AFTER, arm="treatment-0")


def test_a_page_of_three_arms_with_all_there_may_be_is_small():
    text = page(crowded())
    assert len(text.encode()) < MOST_BYTES
    assert not re.search(r"\b(nan|inf)\b", text)


def test_a_missing_interval_says_why_and_how_long():
    waiting = NoInterval("too-few-units", "<12> units, 750 are needed", 1476)
    young = MetricReport(
        "success", (6, 6), (0.0, 0.5), 0.5, -math.inf, math.inf, 1.0, "burn-in", waiting=waiting
    )
    arm = replace(
        REPORT.arms[0],
        primary=young,
        guardrails=(replace(young, state="open", margin=0.03),),
        secondary=(young,),
        segments=(SegmentReport("language", {"en": young}, 1.0, False),),
    )
    text = page(replace(REPORT, arms=(arm,)))
    told = "no range yet: &lt;12&gt; units, 750 are needed; about 1,476 more users"
    assert text.count(told) == 4  # of effects, guardrails, secondary metrics and segments
    assert not re.search(r"\b(nan|inf)\b", text)


def test_secondary_metrics_and_segments_are_told(whole):
    text = page(whole)
    headings = Page(text).headings
    assert "thumbs_up by language: new against old" in headings
    for part in (
        "seconds_to_solution (capped at 300; less is better)",
        "98.8%, for 4",
        "99.4%, for 8",
    ):
        assert part in text


def test_the_holdout_is_told():
    experiment = running(replace(SPEC, mode=Mode.HOLDOUT))
    assert "Everybody in experiments against the holdout" in page(replace(REPORT, experiment=experiment))


def test_it_is_read_in_the_dark_and_on_a_phone():
    text = page(REPORT)
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text


PAGE = (Path(__file__).parents[3] / "docs" / "experiment-modes.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)


def resolve(name: str, version: str = "") -> AdapterInfo:
    return AdapterInfo(AdapterRef(name, version or "1.0.0"), AdapterState.READY)


@pytest.mark.parametrize("block", BLOCKS, ids=["shadow", "holdout"])
def test_a_plan_can_be_kept_and_started(block):
    known = Known(resolve, lambda: ["exact_match"])
    assert not plan_problems(chosen(plan_of(tomllib.loads(block))), known)


def test_they_are_what_the_page_says():
    shadow, holdout = (plan_of(tomllib.loads(block)) for block in BLOCKS)
    assert (shadow.mode, shadow.shadow_share) == (Mode.SHADOW, 0.5)
    assert (holdout.mode, holdout.route, holdout.control) == (Mode.HOLDOUT, "", "kept-out")
    assert holdout_problem(holdout, 0.05) == ""
