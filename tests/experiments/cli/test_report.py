import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from router.experiments.cli.page import page
from router.experiments.cli.report import following, print_report
from router.experiments.model import ArmSpec, Experiment, Mode
from router.experiments.report.build import report
from router.experiments.report.model import Ruling
from router.types import AdapterRef, RouterVariant
from tests.experiments.report.sums import DAY, LONG_AFTER, SPEC, STARTED, SumsStore, both, bucket, running
from tests.experiments.report.told import REPORT


@pytest.fixture
def planned(cli, remote):
    cli(
        *("experiments", "create", "medical-v2", "--route", "medical", "--metric", "success"),
        *("--arm", "control=medical@1.0.0", "--arm", "new=medical@1.1.0", "--start"),
    )
    return remote.experiments


def test_the_verdict_comes_first_then_what_it_rests_on(cli, planned):
    lines = cli("experiments", "report", "medical-v2").out.splitlines()
    assert lines[0] == "PROMOTE new  (primary-better)"
    assert lines[1].startswith("success: 0.575 against 0.5 on 4000 units")
    text = "\n".join(lines)
    for part in (
        "95% INTERVAL",
        "+0.04 ± 0.03 at equal answer length (95.5 tokens an answer against 80)",
        "new  30   10    5     75.0% [60.0%, 90.0%]",
        "within",
        "sample-ratio      ok",
        "120 ms",
        "NOTES",
    ):
        assert part in text
    assert lines[-1] == "next: lora-router experiments promote medical-v2"


def test_the_last_acts_are_told(capsys):
    entry = REPORT.audit[0]
    acts = tuple(replace(entry, act=f"act-{i}", reason="\x1b[2Jx") for i in range(9))
    print_report(replace(REPORT, audit=acts))
    lines = capsys.readouterr().out.split("WHAT WAS DONE\n")[1].splitlines()
    assert lines[0] == "... 3 before"
    assert lines[1].endswith("127.0.0.1 act-3: [2Jx")
    assert lines[6].endswith("act-8: [2Jx")


def test_json_has_every_number_and_null_for_what_is_not_known(cli, planned):
    found = json.loads(cli("experiments", "report", "medical-v2", "--json").out)
    assert found["verdict"]["decision"] == "promote"
    assert found["arms"][0]["everyone"]["low"] is None
    assert found["points"][-1]["share_low"] < 0.5


def test_watch_ends_after_the_looks_or_with_the_experiment(cli, planned):
    done = cli("experiments", "watch", "medical-v2", "--every", "0.01", "--looks", "2", "--json")
    assert [json.loads(line)["phase"] for line in done.out.splitlines()] == [1, 1]
    cli("experiments", "stop", "medical-v2")
    done = cli("experiments", "watch", "medical-v2", "--every", "0.01")
    assert done.out.count("PROMOTE new") == 1
    done = cli("experiments", "watch", "medical-v2", "--every", "0")
    assert (done.code, "--every must be above 0 seconds" in done.err) == (2, True)


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


def test_the_page_needs_nothing_else(cli, planned, tmp_path):
    done = cli("experiments", "report", "medical-v2", "--html", tmp_path / "report.html")
    assert done.out.splitlines()[-1] == f"page: {tmp_path / 'report.html'}"
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    found = Page(text)
    assert not {"script", "link", "img", "iframe", "object"} & set(found.tags)
    assert not [name for name, _ in found.attributes if name in ("src", "href") or name.startswith("on")]
    assert not re.search(r"https?:|url\((?!#)|@import", text)
    assert found.tags.count("svg") == 3  # effect, sample ratio, one guardrail


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
        "success: proportion, more is better",
        "success by arm",
        "Shadow answers against served ones",
        "Guardrails",
        "Sample ratio and answers by arm",
        "Checks",
        "Plan",
        "Audit trail",
        "What the words mean",
    ]


def test_a_page_of_nothing_yet():
    draft = report(SumsStore([], Experiment("draft", SPEC)), "draft", now=STARTED)
    assert Page(page(draft)).headings == ["Plan", "What the words mean"]
    empty = report(SumsStore([]), "medical-v2", now=STARTED)
    assert "Checks" in Page(page(empty)).headings


def test_a_failed_check_stands_at_the_top():
    buckets = [*both(1000, 1150), bucket("new", 600, 300, at=1)]
    text = page(report(SumsStore(buckets), "medical-v2", now=LONG_AFTER))
    assert Page(text).headings[0] == "Checks that failed"
    assert 'class="verdict invalid"' in text


def test_several_arms_have_their_rulings_and_colours():
    arms = (
        *(replace(a, weight=0.34) for a in SPEC.arms),
        ArmSpec("base", 0.32, AdapterRef("medical", "1.2.0")),
    )
    buckets = [*both(1000, 1010), bucket("base", 1900, 700)]
    text = page(report(SumsStore(buckets, running(replace(SPEC, arms=arms))), "medical-v2", now=LONG_AFTER))
    assert text.count('class="chip"') == 2
    assert '<span class="arm c2">base</span> <span class="pill harm">stop for harm</span>' in text


def test_modes_without_a_sample_ratio_have_no_plot_of_it():
    spec = replace(SPEC, mode=Mode.BANDIT)
    found = report(SumsStore(both(500, 510, hours=30), running(spec)), "medical-v2", now=LONG_AFTER)
    text = page(found)
    assert 'id="shares"' not in text
    assert 'id="effect"' in text


@pytest.mark.parametrize(
    ("decision", "promoted", "phase", "told"),
    [
        ("promote", "", 1, "next: lora-router experiments promote medical-v2"),
        ("stop for harm", "", 1, "next: lora-router experiments stop medical-v2 --reason harm"),
        ("invalid", "", 1, "next: find out why the check failed"),
        ("undecided", "", 1, "next: wait; lora-router experiments watch medical-v2"),
        ("undecided", "", 0, "next: lora-router experiments start medical-v2"),
        ("promote", "new", 1, "promoted: new; undo: lora-router experiments rollback medical-v2"),
    ],
)
def test_every_verdict_has_a_next_step(decision, promoted, phase, told):
    made = replace(
        REPORT,
        verdict=Ruling(decision, "rule", "text"),
        phase=phase,
        experiment=replace(REPORT.experiment, promoted=promoted),
    )
    assert following(made).startswith(told)


def test_a_better_router_is_a_setting_and_no_version():
    arms = (SPEC.arms[0], ArmSpec("new", 0.5, router=RouterVariant(threshold=0.4)))
    made = replace(REPORT, experiment=running(replace(SPEC, route="", arms=arms)))
    assert following(made) == "next: make it the server's own: router with threshold 0.4"


def test_shadow_arms_have_pairs_and_no_table_of_effects(capsys):
    spec = replace(SPEC, mode=Mode.SHADOW)
    store = SumsStore([bucket("control", 300, 150)], running(spec), pairs={"new": (300, 100, 50)})
    print_report(report(store, "medical-v2", now=LONG_AFTER))
    out = capsys.readouterr().out
    assert "DIFFERENCE" not in out
    assert "SHARE WON" in out


def test_points_within_the_window_are_not_drawn():
    found = report(SumsStore(both(500, 510, hours=48)), "medical-v2", now=STARTED + 2 * DAY)
    text = page(found)
    points = re.search(r'class="line c1" points="([^"]*)"', text)
    assert points is not None
    assert len(points[1].split()) == 24
