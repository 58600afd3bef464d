"""Experiments in the console: planned, run, judged and ended by the service's own methods."""

from __future__ import annotations

import html
import re
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from router.extensions.console import experiments as page
from router.extensions.experiments.messages import experiment_message, report_message
from router.extensions.experiments.model import Kind, MetricSpec
from router.v1 import experiments_pb2 as pb
from tests.extensions.console.conftest import post, signed_in
from tests.extensions.experiments.memory_store import MemoryStore
from tests.extensions.experiments.plans import said
from tests.extensions.experiments.report.sums import REPORT
from tests.extensions.experiments.service.lab import answer, create, experimenting, running
from tests.security.helpers import write_clients
from tests.server.helpers import Connect
from tests.server.http_helpers import Http, StartWeb

HOME = "/console/experiments"
NEW = "/console/new-experiment"
HOSTILE = "<script>alert(1)</script>"
REST = f"""
hypothesis = "{HOSTILE}"
window = "1.5h"
planned_units = 2000

[[guardrails]]
name = "error"
margin = 0.01

[[segments]]
label = "plan"
values = ["free", "paid"]
"""
PLAN = {
    "name": "tone",
    "control": "medical@1.0.0",
    "treatment": "medical@1.1.0",
    "split": "70/30",
    "metric": "solved",
    "plan": REST,
}
ARMS = """
[[arms]]
name = "now"
weight = 0.5
adapter = "medical@1.0.0"

[[arms]]
name = "bare"
weight = 0.5

[primary]
name = "minutes"
kind = "mean"
"""


@pytest.fixture
async def lab(
    fakes: SimpleNamespace, start_web: StartWeb, connect: Connect, http: Http
) -> AsyncIterator[SimpleNamespace]:
    """A server with experiments, and a browser."""
    async with experimenting(MemoryStore(), fakes, start_web, connect) as stubs:
        yield SimpleNamespace(**vars(stubs), http=http(stubs.app))


def errors_at(text: str) -> dict[str, str]:
    """What stands beside the fields of a form."""
    return dict(re.findall(r'<p class="error" id="([^"]+)-error-1">([^<]*)</p>', text))


async def test_without_experiments_the_pages_say_why(opened: SimpleNamespace) -> None:
    for path in (HOME, NEW):
        text = (await opened.http.get(path)).text
        assert "Experiments are off: set `experiments.enabled` to true." in text
        assert '<form method="post" action="/console/new' not in text
    refused = await post(opened.http, NEW + "/create", **PLAN)
    assert (refused.status_code, "experiments are off" in refused.text) == (400, True)


async def test_a_plan_becomes_a_draft(lab: SimpleNamespace) -> None:
    assert "No experiment yet" in (await lab.http.get(HOME)).text
    made = await post(lab.http, NEW + "/create", **PLAN)
    assert (made.status_code, made.headers["location"]) == (303, HOME + "/tone"), made.text
    spec = lab.store.experiments["tone"].spec
    assert [(arm.name, str(arm.adapter), arm.weight) for arm in spec.arms] == [
        ("old", "medical@1.0.0", 0.7),
        ("new", "medical@1.1.0", 0.3),
    ]
    assert (spec.control, spec.route, spec.window, spec.planned_units) == ("old", "medical", 5400.0, 2000)
    assert spec.primary == said(MetricSpec("solved", Kind.PROPORTION))
    assert [(rail.name, rail.margin, rail.higher_is_better) for rail in spec.guardrails] == [
        ("error", 0.01, False)
    ]
    assert [segment.label for segment in spec.segments] == ["plan"]
    shown = (await lab.http.get(HOME + "/tone")).text
    assert HOSTILE not in shown
    assert "&lt;script&gt;alert(1)" in shown
    assert ">draft</span>" in shown
    for path in ("promote", "stop", "roll-back"):
        assert f'/experiments/{path}"' not in shown
    assert HOSTILE not in (await lab.http.get(HOME)).text


async def test_what_the_fields_leave_out_comes_from_the_file(lab: SimpleNamespace) -> None:
    file = 'route = "medical"\ncontrol = "now"\n' + ARMS
    made = await post(lab.http, NEW + "/create", name="filed", control="", treatment="", plan=file)
    assert made.status_code == 303, made.text
    spec = lab.store.experiments["filed"].spec
    assert [(arm.name, arm.weight) for arm in spec.arms] == [("now", 0.5), ("bare", 0.5)]
    assert (spec.primary.name, spec.primary.kind, spec.route) == ("minutes", Kind.MEAN, "medical")


async def test_every_error_stands_at_its_field_and_nothing_typed_is_lost(lab: SimpleNamespace) -> None:
    wrong = PLAN | {
        "name": "No Name",
        "treatment": "medical@9.9.9",
        "plan": REST.replace("2000", "0").replace("0.01", "-1").replace(HOSTILE, HOSTILE + "é" * 4000),
    }
    refused = await post(lab.http, NEW + "/create", **wrong)
    assert refused.status_code == 400
    found = errors_at(refused.text)
    assert set(found) == {"name", "treatment", "plan"}
    assert "9.9.9" in found["treatment"]
    for told in ("planned_units: must be", "guardrails[0].margin: must be"):
        assert f">{told}" in refused.text, told
    assert HOSTILE not in refused.text
    assert '<option value="medical@9.9.9" selected>medical@9.9.9 (not here)' in refused.text
    assert "é" * 4000 in refused.text
    assert not lab.store.experiments
    await post(lab.http, NEW + "/create", **PLAN)
    again = await post(lab.http, NEW + "/create", **PLAN)
    assert (again.status_code, "exists already" in errors_at(again.text)["name"]) == (409, True)


@pytest.mark.parametrize(
    ("change", "place", "told"),
    [
        ({"plan": "alpha = often"}, "plan", "not valid TOML"),
        ({"plan": "windw = 3"}, "plan", "windw: unknown field; did you mean &#39;window&#39;?"),
        ({"plan": "x" * 40_000}, "plan", "must have at most 32,768 characters"),
        ({"plan": ".".join("x" * 500) + " = 1"}, "plan", "100 dots in a line"),
        ({"plan": "a = [" * 20_000}, "plan", "must have at most 32,768 characters"),
        ({"plan": "a = " + "[" * 20_000}, "plan", "not valid TOML"),
        ({"split": "90/20"}, "split", "add up to 110"),
        ({"metric": "odd:solved"}, "metric", "primary.kind: must be &#39;proportion&#39;"),
        ({"treatment": ""}, "treatment", "must be NAME@VERSION or base"),
    ],
)
async def test_what_is_no_plan_is_told_at_its_field(
    lab: SimpleNamespace, change: dict[str, str], place: str, told: str
) -> None:
    refused = await post(lab.http, NEW + "/create", **(PLAN | change))
    assert (refused.status_code, set(errors_at(refused.text))) == (400, {place}), refused.text
    assert told in errors_at(refused.text)[place]


async def test_a_store_that_is_down_loses_no_word(lab: SimpleNamespace) -> None:
    lab.store.down = True
    refused = await post(lab.http, NEW + "/create", **PLAN)
    assert (refused.status_code, "<option selected>medical@1.1.0" in refused.text) == (503, True)
    assert "Nothing was kept" in refused.text
    lab.store.down = False


async def test_a_new_experiment_shows_its_plan_at_once(lab: SimpleNamespace) -> None:
    await lab.experiments.CreateExperiment(create("medical-1-1-0"))
    page = (await lab.http.get("/console/adapters/medical/1.1.0")).text
    assert "new-experiment?control=medical%401.0.0&amp;treatment=medical%401.1.0" in page
    shown = (await lab.http.get(NEW + "?control=medical@1.0.0&treatment=medical@1.1.0")).text
    assert 'value="medical-1-1-0-2"' in shown  # a name that is free
    for words in (
        "<dt>arm new</dt><dd>0.5 of units: medical@1.1.0</dd>",
        "50 % is assumed",
        "are found with 80 % power by 5,000 planned units",
        "lora-router experiments create medical-1-1-0-2 medical-1-1-0-2.toml",
    ):
        assert words in shown, words
    typed = re.search(r'<textarea id="plan"[^>]*>\n(.*?)</textarea>', shown, re.DOTALL)
    assert typed
    short = {"control": "medical@1.0.0", "treatment": "medical@1.1.0", "metric": "feedback"}
    kept = await post(lab.http, NEW + "/create", name="short", plan=html.unescape(typed[1]), **short)
    assert kept.status_code == 303, kept.text
    spec = lab.store.experiments["short"].spec
    assert [(arm.name, arm.weight) for arm in spec.arms] == [("old", 0.5), ("new", 0.5)]
    assert [rail.name for rail in spec.guardrails] == ["error"]


async def test_the_preview_says_what_is_missing_and_refuses_nothing(lab: SimpleNamespace) -> None:
    answer = await post(lab.http, NEW + "/preview", **PLAN)
    assert (answer.status_code, "found with 80 % power by 2,000" in answer.text) == (200, True), answer.text
    assert "<html" not in answer.text
    for change, words in (
        ({"treatment": ""}, "arms[1].adapter: must be NAME@VERSION or base"),
        ({"plan": "alpha = 2"}, "alpha: must be above 0"),
    ):
        answer = await post(lab.http, NEW + "/preview", **(PLAN | change))
        assert (answer.status_code, words in answer.text) == (200, True), answer.text
    assert not lab.store.experiments


async def test_start_stop_and_what_they_are_refused_with(lab: SimpleNamespace) -> None:
    await lab.experiments.CreateExperiment(create())
    name = "experiments/trial"
    started = await post(lab.http, HOME + "/start", name=name, etag="")
    assert (started.status_code, started.headers["location"]) == (303, HOME + "/trial")
    assert lab.store.experiments["trial"].state == "running"
    stale = await post(lab.http, HOME + "/stop", name=name, etag="another", reason="as I say")
    assert stale.status_code == 409
    assert "changed since its etag was read" in stale.text
    assert 'value="as I say"' in stale.text
    long = await post(lab.http, HOME + "/stop", name=name, etag="", reason="x" * 501)
    assert (long.status_code, "at most 500 bytes" in long.text) == (400, True)
    stopped = await post(lab.http, HOME + "/stop", name=name, etag="", reason=HOSTILE)
    assert stopped.status_code == 303
    assert lab.store.experiments["trial"].stop_reason == HOSTILE
    shown = (await lab.http.get(HOME + "/trial")).text
    assert HOSTILE not in shown
    assert "Start again" in shown


async def test_an_arm_is_promoted_on_its_verdict_alone_and_goes_back(lab: SimpleNamespace) -> None:
    await running(lab)
    shown = (await lab.http.get(HOME + "/trial")).text
    assert "WAIT" in shown
    assert '/experiments/promote"' not in shown  # no button that cannot work
    refused = await post(
        lab.http, HOME + "/promote", name="experiments/trial", arm="new", etag="", force="yes"
    )
    assert (refused.status_code, "force overrules it" in refused.text) == (400, True)
    request = pb.PromoteArmRequest(name="experiments/trial", arm="new", force=True)
    await lab.experiments.PromoteArm(request)
    shown = (await lab.http.get(HOME + "/trial")).text
    assert "new promoted" in shown
    assert "Roll back" in shown
    back = await post(lab.http, HOME + "/roll-back", name="experiments/trial", reason="too bold")
    assert back.status_code == 303
    assert lab.registry.get("medical").ref.version == "1.0.0"


async def test_one_that_was_deleted_meanwhile(lab: SimpleNamespace) -> None:
    for path, fields in (("/start", {}), ("/stop", {}), ("/promote", {"arm": "new"}), ("/roll-back", {})):
        gone = await post(lab.http, HOME + path, name="experiments/gone", **fields)
        assert (gone.status_code, "experiment &#39;gone&#39; not found" in gone.text) == (404, True), path
    for name in ("gone", "No%20Name", "%3Cscript%3E"):
        answered = await lab.http.get(f"{HOME}/{name}")
        assert answered.status_code in (400, 404)
        assert "<script>" not in answered.text


async def test_a_report_shows_arms_checks_and_history(lab: SimpleNamespace) -> None:
    await running(lab)
    for unit in ("anna", "ben", "cleo"):
        response = await answer(lab, unit)
        said = pb.Outcome(response_id=response.response_id, metric="solved", value=1)
        await lab.experiments.RecordOutcome(pb.RecordOutcomeRequest(outcome=said))
    shown = (await lab.http.get(HOME + "/trial")).text
    for words in (
        "Shares of the arms",
        'data-label="planned" class="right">50.0 %',
        ">start<",
        "medical@1.1.0",
        "data-live",
    ):
        assert words in shown, words
    live = (await lab.http.get(HOME + "/trial/live")).text
    assert ("WAIT" in live, "<html" in live) == (True, False)
    assert (await lab.http.get(HOME + "/trial?phase=7")).status_code == 400


async def test_roles_are_those_of_the_methods(
    fakes: SimpleNamespace, start_web: StartWeb, connect: Connect, http: Http, tmp_path: Path
) -> None:
    clients = write_clients(tmp_path, olga=("observe",), ada=("admin", "observe"))
    started = partial(start_web, clients=clients.path)
    async with experimenting(MemoryStore(), fakes, started, connect) as stubs:
        olga = await signed_in(http(stubs.app), clients.olga)
        ada = await signed_in(http(stubs.app), clients.ada)
        assert (await post(ada, NEW + "/create", **PLAN)).status_code == 303
        shown = (await olga.get(HOME + "/tone")).text
        assert "StartExperiment needs the role admin" in shown
        assert (await post(olga, HOME + "/start", name="experiments/tone")).status_code == 403
        assert "CreateExperiment needs the role admin" in (await olga.get(NEW)).text
        assert (await post(olga, NEW + "/create", **PLAN)).status_code == 403
        assert (await post(olga, NEW + "/preview", **PLAN)).status_code == 200


async def test_a_report_with_something_in_every_field(
    lab: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    await running(lab)
    monkeypatch.setattr(
        "router.extensions.experiments.service.report_message",
        lambda _, experiment: report_message(REPORT, experiment_message(REPORT.experiment)),
    )
    shown = (await lab.http.get(HOME + "/trial")).text
    for words in (
        "PROMOTE new<span>: it is better than control.</span>",
        "success: +7.5 points (4.2 to 12.4) ✓ better: 57.5 % of users with new, 50.0 % with control.",
        '<span class="badge ok">✓ within what is allowed</span>',
        "ticket 7",
    ):
        assert words in shown, words
    assert "<script>alert" not in shown


def test_experiments_are_found_by_words_of_their_plan() -> None:
    one = experiment_message(REPORT.experiment)
    assert page.matches(one, "helps 1.1.0")
    assert not page.matches(one, "helps 2.0.0")


async def test_the_list_shows_what_the_server_saw_last(
    lab: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Running ones come first, with their verdict from the guardian's last look: no report is made for it."""
    await running(lab)
    await lab.experiments.CreateExperiment(create("a-draft"))
    await lab.live.guardian.look()
    monkeypatch.setattr("router.extensions.experiments.service.report_message", None)
    shown = (await lab.http.get(HOME)).text
    assert "WAIT" in shown
    assert "0 of 5,000 planned users (0 %)" in shown
    assert shown.index("experiments/trial") < shown.index("experiments/a-draft")
    assert "1 draft</summary>" in shown
    await lab.live.guardian.look()
    await post(lab.http, HOME + "/stop", name="experiments/trial", etag="", reason="")
    await lab.live.guardian.look()
    assert not lab.live.guardian.latest
