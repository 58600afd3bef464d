"""Runs on the console's page, and the button that starts one."""

from __future__ import annotations

import sys

import pytest

from router.errors import FailedPrecondition
from router.extensions.improve.overview import Runs
from router.extensions.improve.state import Result, Run, RunFolder
from router.feedback.model import Feedback
from tests.extensions.console.conftest import opened, post, roled  # noqa: F401

GAP = {"mean": 0.12, "low": 0.081, "high": 0.157, "p": 0.001, "rows": 70}


def ended(place, result=Result.NO_BETTER):
    run = Run(1, "medical", 1.0, "1.0.0", version="1.1.0", read=100, train=70, held_out=20, left={"bad": 10})
    run.new = run.old = {"difference": GAP}
    RunFolder(place / "medical" / "1", run).end(result, "no gain is shown")


async def test_page_shows_runs_and_the_command(start_web, fakes, http, tmp_path):
    ended(tmp_path)
    server = await start_web(**vars(fakes), **{"improve.work": str(tmp_path)})
    page = (await http(server).get("/console/improvement")).text
    assert "+12.0 points (8.1 to 15.7)" in page
    assert "70 + 20 held out" in page
    assert "10 left out: bad" in page
    assert "lora-router adapters improve medical" in page
    assert "<button>Start a run" not in page
    assert (await post(http(server), "/console/improvement", name="medical")).status_code == 400


async def test_button_starts_the_command_where_the_operator_allows_it(
    start_web, fakes, http, tmp_path, monkeypatch
):
    begun = []
    monkeypatch.setattr("subprocess.Popen", lambda command, **_: begun.append(command) or Process())
    ended(tmp_path)
    server = await start_web(**vars(fakes), **{"improve.work": str(tmp_path), "improve.enabled": True})
    assert "<button>Start a run" in (await http(server).get("/console/improvement")).text
    assert (await post(http(server), "/console/improvement", name="medical")).status_code == 303
    assert (await post(http(server), "/console/improvement", name="nobody")).status_code == 404
    (command,) = begun
    assert command[:6] == [sys.executable, "-m", "router.cli", "adapters", "improve", "medical"]
    assert command[command.index("--promote") + 1] == "no"


async def test_only_administrators_may_start_a_run(roled, tmp_path):  # noqa: F811
    there = await roled(**{"improve.work": str(tmp_path), "improve.enabled": True})
    assert "<button>Start a run" not in (await there.olga.get("/console/improvement")).text
    assert (await post(there.olga, "/console/improvement", name="medical")).status_code == 403


async def test_page_counts_feedback_since_the_last_version_that_users_saw(start_web, fakes, http, tmp_path):
    ended(tmp_path, Result.CANARY)
    server = await start_web(**vars(fakes), **{"improve.work": str(tmp_path)})
    for place, verdict in enumerate(["good", "bad", "corrected", "good"]):
        server.feedback.store.put(Feedback(f"r{place}", 100.0 + place, "", "", "medical", "1.0.0", verdict))
    page = (await http(server).get("/console/improvement")).text
    assert "2 good, 1 bad, 1 corrected" in page


class Process:
    """A process that runs on."""

    def poll(self):
        return None

    def terminate(self):
        pass


def test_second_run_of_an_adapter_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: Process())
    runs = Runs(tmp_path, [], "")
    runs.start("medical")
    with pytest.raises(FailedPrecondition, match="at work"):
        runs.start("medical")
    assert not runs.overview(["medical"])[0].runs
