"""The steps of a run, and how it goes on."""

from __future__ import annotations

import json
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from router.cli.main import run
from router.errors import ConfigError, FailedPrecondition
from router.experiments.report.model import Ruling
from router.extensions.improve import canary, state
from router.extensions.improve.canary import Canary
from router.extensions.improve.records import read_records
from router.extensions.improve.run import Improvement, ImproveRequest, wait_until
from router.extensions.improve.state import Result
from tests.extensions.improve.conftest import KEPT, record, row, write


class FakeServer:
    """What a run asks of a server."""

    def __init__(self):
        self.default, self.pinned, self.made, self.promoted = "1.0.0", "", {}, False
        self.verdict = Ruling("undecided", "primary-open", "wait")
        self.adapters = SimpleNamespace(get=self.get, set_default=self.set_default)
        self.experiments = self
        self.feedback = SimpleNamespace(list=lambda name, since: iter(self.kept))
        self.kept = []

    @contextmanager
    def connect(self):
        yield self

    def get(self, name):
        _, _, version = name.partition("@")
        return SimpleNamespace(ref=SimpleNamespace(version=version or self.default), state="ready", error="")

    def set_default(self, name):
        self.pinned = name

    def list(self):
        return ()

    def create(self, name, spec):
        self.made[name] = spec

    def start(self, name):
        assert name in self.made

    def report(self, name):
        return SimpleNamespace(verdict=self.verdict, experiment=SimpleNamespace(stopped=None, stop_reason=""))

    def stop(self, name, reason):
        self.made.pop(name)

    def promote(self, name):
        self.promoted = True


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(
        canary, "sentence", lambda report: f"{report.verdict.decision}: {report.verdict.text}"
    )
    monkeypatch.setattr(canary, "gives_up", lambda report: report.verdict.rule == "gave-up")
    return FakeServer()


def improve(place, server=None, said=None, **options):
    request = ImproveRequest(
        "colours",
        adapters=place / "adapters",
        recipes=place / "recipes",
        work=place / "work",
        **{"feedback": place / "feedback.jsonl"} | ({"canary": None} if server is None else {}) | options,
    )
    say = print if said is None else said.append
    return Improvement(request, server.connect if server else None, say).run()


def test_better_version_is_pinned_added_and_put_before_a_share_of_the_users(place, commands, server):
    made = improve(place, server, canary=Canary(0.1, "thumbs_up"))
    assert made.result is Result.CANARY
    assert made.why.startswith("+50.0 points (40.0 to 60.0)")
    assert commands.names == ["train", "compare", "compare", "evaluate", "add"]
    assert server.pinned == "colours@1.0.0"
    (spec,) = server.made.values()
    assert [(arm.weight, str(arm.adapter)) for arm in spec.arms] == [
        (0.9, "colours@1.0.0"),
        (0.1, "colours@1.1.0"),
    ]
    card = json.loads((place / "adapters" / "colours-1.1.0" / "report.json").read_text())
    assert card["improved_from"]["base_version"] == "1.0.0"
    assert card["improved_from"]["feedback"]["train"] == made.train


def test_version_that_is_no_better_is_kept_and_never_offered(place, commands, server):
    commands.gap = KEPT
    made = improve(place, server)
    assert made.result is Result.NO_BETTER
    assert "no gain is shown" in made.why
    assert "add" not in commands.names
    assert not server.made
    assert (place / "work/colours/1/version").is_dir()


def test_feedback_comes_from_the_server_unless_a_file_is_named(place, commands, server):
    server.kept = read_records(place / "feedback.jsonl", "colours")
    made = improve(place, server, feedback=None)
    assert (made.result, made.read) == (Result.CANARY, 120)


def test_run_that_ended_keeps_no_text_of_a_user(place, commands):
    commands.gap = KEPT
    improve(place)
    kept = [file.read_text() for file in (place / "work").rglob("*.json*")]
    assert kept
    assert not any("shade of thing" in text for text in kept)


def test_rows_of_validation_and_test_are_never_trained_on(place, commands):
    asked = [row(301)["prompt"], row(331)["prompt"]]
    apart = [record(200 + place, messages=[["user", text]]) for place, text in enumerate(asked)]
    write(place / "feedback.jsonl", [*map(record, range(120)), *apart])
    commands.interrupts = "compare"
    with pytest.raises(KeyboardInterrupt):
        improve(place)
    (folder,) = state.runs_of(place / "work", "colours")
    assert folder.run.left["the prompt is a row of validation or test"] == 2
    trained = folder.file(state.TRAIN).read_text()
    assert "thing 301?" not in trained
    assert "thing 331?" not in trained
    assert folder.run.own == 2 * folder.run.train


def test_correction_to_no_label_of_the_adapter_is_left_out(place, commands):
    recipe = place / "recipes" / "colours.toml"
    recipe.write_text(recipe.read_text() + '[generation]\nchoices = ["red", "blue"]\n')
    write(place / "feedback.jsonl", [*map(record, range(120)), record(200, corrected="reddish")])
    made = improve(place)
    assert made.left == {"the response is none of the adapter's labels": 1}


def test_few_rows_end_a_run_with_a_sentence(place, commands):
    write(place / "feedback.jsonl", map(record, range(10)))
    made = improve(place)
    assert made.result is Result.TOO_FEW
    assert made.why.startswith("10 usable rows")
    assert not commands.called


def test_interrupted_run_goes_on_behind_the_last_step_that_ended(place, commands):
    commands.interrupts = "compare"
    with pytest.raises(KeyboardInterrupt):
        improve(place)
    made = improve(place)
    assert (made.number, made.result) == (1, Result.BETTER)
    assert commands.names == ["train", "compare", "compare"]


def test_feedback_that_users_saw_a_version_of_is_not_read_again(place, commands, server):
    improve(place, server)
    server.default = "1.1.0"
    assert improve(place, server).result is Result.PROMOTED
    server.default = "1.1.0"
    made = improve(place, server)
    assert (made.number, made.base, made.read, made.result) == (2, "1.1.0", 0, Result.TOO_FEW)


@pytest.mark.parametrize(("promote", "promoted"), [("auto", True), ("ask", False), ("no", False)])
def test_won_canary_is_promoted_as_the_operator_said(place, commands, server, promote, promoted):
    improve(place, server, promote=promote)
    server.verdict = Ruling("promote", "primary-better", "0.8 against 0.5")
    made = improve(place, server, promote=promote)
    assert server.promoted is promoted
    assert made.result is (Result.PROMOTED if promoted else Result.CANARY)


@pytest.mark.parametrize(
    "verdict",
    [Ruling("stop for harm", "primary-worse", "worse"), Ruling("undecided", "gave-up", "no difference")],
)
def test_lost_canary_takes_the_version_out_of_the_adapters(place, commands, server, verdict):
    improve(place, server)
    server.verdict = verdict
    assert improve(place, server).result is Result.LOST
    assert not (place / "adapters" / "colours-1.1.0").exists()
    assert not server.made
    assert (place / "work/colours/1/version/adapter.toml").is_file()


def test_two_calls_for_one_adapter_do_not_run_at_once(place, commands):
    with (
        state.alone(place / "work", "colours"),
        pytest.raises(FailedPrecondition, match="improved by process"),
    ):
        improve(place)


def test_feedback_that_is_not_understood_is_named_by_its_line(place, commands):
    write(place / "feedback.jsonl", [record(1), record(2, verdict="fine")])
    with pytest.raises(ConfigError, match=r"feedback.jsonl:2 .*'verdict' must be one of good"):
        improve(place)


def test_training_waits_for_its_time_of_the_day(monkeypatch):
    slept = []
    clock = iter([1_000_000.0, 1_000_000.0, 1_000_000.0, 1_000_000.0 + 86_400])
    monkeypatch.setattr("time.sleep", slept.append)
    wait_until("02:00", lambda text: None, lambda: next(clock))
    assert slept == [30.0]
    with pytest.raises(ConfigError, match="HH:MM"):
        wait_until("2 o'clock", print)


def test_status_shows_runs_and_changes_nothing(place, commands, server, capsys, monkeypatch):
    improve(place, server)
    capsys.readouterr()
    monkeypatch.setattr("router.cli.connect.connected", lambda *_: server.connect())
    assert run(["adapters", "improve", "colours", "--status", "--work", str(place / "work")]) == 0
    shown = capsys.readouterr().out
    assert "+50.0 points (40.0 to 60.0)" in shown
    assert "the canary now: undecided: wait" in shown
    assert "1.0.0  1.1.0" in shown
