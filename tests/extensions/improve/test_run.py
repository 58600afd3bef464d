"""The steps of a run, and how it goes on."""

from __future__ import annotations

import shutil
import tomllib
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from router.cli.main import run
from router.errors import ConfigError, FailedPrecondition
from router.experiments import words
from router.experiments.report.model import Ruling
from router.extensions.improve import state
from router.extensions.improve.rows import digest_of, read_records
from router.extensions.improve.run import Improvement, ImproveRequest
from router.extensions.improve.state import Result
from tests.extensions.improve.conftest import NO_GAP, record, row, write


class FakeServer:
    """What a run asks of a server."""

    def __init__(self):
        self.default, self.pinned, self.made, self.promoted = "1.0.0", "", {}, False
        self.verdict = Ruling("undecided", "primary-open", "wait")
        self.adapters = SimpleNamespace(get=self.get, set_default=self.set_default)
        self.experiments = self
        self.feedback = SimpleNamespace(list=lambda name: iter(self.kept))
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
    monkeypatch.setattr(words, "heading", lambda report: f"{report.verdict.decision}: {report.verdict.text}")
    monkeypatch.setattr(words, "gives_up", lambda report: report.verdict.rule == "gave-up")
    made = FakeServer()
    monkeypatch.setattr("router.cli.connect.connected", lambda *_: made.connect())
    return made


def improve(place, server=None, **options):
    request = ImproveRequest(
        "colours",
        adapters=place / "adapters",
        recipes=place / "recipes",
        work=place / "work",
        **{"feedback": place / "feedback.jsonl"} | ({"canary": 0.0} if server is None else {}) | options,
    )
    return Improvement(request, server.connect if server else None, print).run()


def say_more(place, first, count=120):
    """Feedback of other users is added to the file."""
    kept = (place / "feedback.jsonl").read_text()
    write(place / "feedback.jsonl", map(record, range(first, first + count)))
    (place / "feedback.jsonl").write_text(kept + (place / "feedback.jsonl").read_text())


def held_out_users(place, number):
    return state.runs_of(place / "work", "colours")[number - 1].run.judged


# -- The command


def test_command_makes_a_version_from_feedback_and_puts_it_before_users(
    place, commands, server, capsys, monkeypatch
):
    monkeypatch.chdir(place)
    line = ["adapters", "improve", "colours"]
    feedback = ["--feedback", "feedback.jsonl"]
    assert run([*line, *feedback]) == 0
    printed = capsys.readouterr().out
    assert "colours@1.1.0: better, a canary runs: +50.0 points (40.0 to 60.0)" in printed
    (spec,) = server.made.values()
    assert (spec.primary.name, spec.window) == ("feedback", 86_400.0)
    assert run([*line, "--status"]) == 0
    assert "run 1, verdict 1: colours@1.1.0: better, a canary runs" in capsys.readouterr().out
    server.verdict = Ruling("promote", "primary-better", "0.8 against 0.5")
    assert run([*line, *feedback, "--promote"]) == 0
    assert "better, and it serves" in capsys.readouterr().out
    assert server.promoted


def test_exit_codes_say_no_better_and_too_few(place, commands, capsys, monkeypatch):
    monkeypatch.chdir(place)
    line = ["adapters", "improve", "colours", "--canary", "0", "--feedback", "feedback.jsonl"]
    commands.gap = NO_GAP
    assert run(line) == 3
    assert run(line) == 4  # the same users do not judge again
    assert "who were in no comparison before" in capsys.readouterr().out


# -- A verdict


def test_better_version_is_pinned_added_and_put_before_a_share_of_the_users(place, commands, server):
    made = improve(place, server)
    assert made.result is Result.CANARY
    assert commands.names == ["train", "compare", "compare", "evaluate", "add"]
    assert commands.compared == [("colours", "task.jsonl"), ("colours", "held_out.jsonl")]
    assert server.pinned == "colours@1.0.0"
    (spec,) = server.made.values()
    assert [(arm.weight, str(arm.adapter)) for arm in spec.arms] == [
        (0.9, "colours@1.0.0"),
        (0.1, "colours@1.1.0"),
    ]
    assert spec.alpha == 0.025


def test_version_without_a_gain_is_kept_and_never_offered(place, commands, server):
    commands.gap = NO_GAP
    made = improve(place, server)
    assert made.result is Result.NO_BETTER
    assert "no gain is shown" in made.why
    assert "add" not in commands.names
    assert not server.made
    assert (place / "work/colours/1/version").is_dir()


def test_users_judge_once_and_each_further_verdict_may_err_less(place, commands):
    commands.gap = NO_GAP
    assert improve(place).verdict == 1
    first = held_out_users(place, 1)
    assert improve(place).result is Result.TOO_FEW
    say_more(place, 1000)
    commands.gap = NO_GAP | {"mean": 0.5, "p": 0.03}  # enough for the first verdict, at 2.5 % on one side
    made = improve(place)
    assert (made.verdict, made.result) == (2, Result.NO_BETTER)
    assert not set(first) & set(made.judged)
    assert {digest_of(f"user-{n}") for n in range(120)} >= set(first)


def test_version_that_may_forget_uses_up_no_feedback(place, commands):
    commands.changes = [-1.0] * 12 + [0.0] * 588
    made = improve(place)
    assert made.result is Result.NO_BETTER
    assert made.why.startswith(
        "it may forget: −2.0 points (−3.3 points or more) on 600 task rows against 1.0.0"
    )
    assert commands.compared == [("colours", "task.jsonl")]
    commands.changes = [0.0] * 600
    made = improve(place)
    assert (made.verdict, made.result) == (2, Result.BETTER)


def test_every_version_is_trained_from_the_first_and_compared_with_it(place, commands, server):
    improve(place, server)
    server.default = "1.1.0"
    assert improve(place, server).result is Result.PROMOTED
    say_more(place, 1000)
    commands.called.clear()
    made = improve(place, server)
    assert (made.first, made.base, made.version, made.verdict) == ("1.0.0", "1.1.0", "1.2.0", 1)
    assert made.read == 240
    assert commands.compared == [
        ("colours", "task.jsonl"),
        ("colours-1.1.0", "task.jsonl"),
        ("colours-1.1.0", "held_out.jsonl"),
    ]
    recipe = tomllib.loads((place / "work/colours/2/recipe.toml").read_text())
    assert recipe["lora"]["start"] == str(place / "adapters" / "colours")


def test_first_version_that_is_gone_is_asked_for(place, commands, server):
    improve(place, server)
    server.default = "1.1.0"
    improve(place, server)
    shutil.rmtree(place / "adapters" / "colours")
    with pytest.raises(ConfigError, match=r"lacks colours@1.0.0, from which 1.1.0 was trained: put it back"):
        improve(place, server)


def test_run_whose_opponent_no_longer_serves_ends(place, commands, server):
    assert improve(place, server, canary=0.0, feedback=place / "feedback.jsonl").result is Result.BETTER
    write_version(place, "2.0.0")
    server.default = "2.0.0"
    made = improve(place, server)
    assert (made.number, made.base, made.first) == (2, "2.0.0", "2.0.0")
    assert state.runs_of(place / "work", "colours")[0].run.why == "2.0.0 serves, and the run began with 1.0.0"


def write_version(place, version):
    folder = place / "adapters" / f"colours-{version}"
    folder.mkdir()
    (folder / "adapter.toml").write_text(f'[adapter]\nname = "colours"\nversion = "{version}"\n')


# -- Rows


def test_feedback_comes_from_the_server_unless_a_file_is_named(place, commands, server):
    server.kept = read_records(place / "feedback.jsonl", "colours")
    made = improve(place, server, feedback=None)
    assert (made.result, made.read) == (Result.CANARY, 120)


def test_run_that_ended_keeps_no_text_of_a_user(place, commands):
    commands.gap = NO_GAP
    improve(place)
    kept = [file.read_text() for file in (place / "work").rglob("*.json*")]
    assert kept
    assert not any("shade of thing" in text for text in kept)


def test_rows_of_validation_and_test_are_never_trained_on(place, commands):
    asked = [row(301)["prompt"], row(601)["prompt"]]
    apart = [record(200 + place, messages=[["user", text]]) for place, text in enumerate(asked)]
    write(place / "feedback.jsonl", [*map(record, range(120)), *apart])
    commands.interrupts = "compare"
    with pytest.raises(KeyboardInterrupt):
        improve(place)
    (folder,) = state.runs_of(place / "work", "colours")
    assert folder.run.left["the prompt is a row of validation or test"] == 2
    trained = folder.file(state.TRAIN).read_text()
    assert "thing 301?" not in trained
    assert "thing 601?" not in trained
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
    assert (made.result, made.verdict) == (Result.TOO_FEW, 0)
    assert made.why.startswith("10 usable rows")
    assert not commands.called


def test_few_users_end_a_run_however_many_rows_they_sent(place, commands):
    write(place / "feedback.jsonl", (record(n, unit=f"user-{n % 20}") for n in range(120)))
    made = improve(place)
    assert (made.result, made.verdict) == (Result.TOO_FEW, 0)
    assert "12 users who were in no comparison before" in made.why


def test_recipe_with_too_few_rows_to_show_what_is_kept_is_said_before_training(place, commands):
    write(place / "recipes" / "valid.jsonl", map(row, range(300, 310)))
    write(place / "recipes" / "test.jsonl", map(row, range(600, 610)))
    made = improve(place)
    assert (made.result, made.verdict) == (Result.TOO_FEW, 0)
    assert "20 validation and test rows; it takes" in made.why
    assert not commands.called


def test_interrupted_run_goes_on_behind_the_last_step_that_ended(place, commands):
    commands.interrupts = "compare"
    with pytest.raises(KeyboardInterrupt):
        improve(place)
    made = improve(place)
    assert (made.number, made.verdict, made.result) == (1, 1, Result.BETTER)
    assert commands.names == ["train", "compare", "compare"]


def test_interrupted_comparison_is_the_same_verdict(place, commands):
    commands.interrupts = str(place / "work/colours/1" / state.NEW)
    with pytest.raises(KeyboardInterrupt):
        improve(place)
    judged = held_out_users(place, 1)
    made = improve(place)
    assert (made.number, made.verdict, list(made.judged)) == (1, 1, list(judged))
    assert commands.compared == [("colours", "task.jsonl"), ("colours", "held_out.jsonl")]


# -- The canary


@pytest.mark.parametrize("promote", [True, False])
def test_won_canary_is_promoted_where_the_operator_says_so(place, commands, server, promote):
    improve(place, server)
    server.verdict = Ruling("promote", "primary-better", "0.8 against 0.5")
    made = improve(place, server, promote=promote)
    assert server.promoted is promote
    assert made.result is (Result.PROMOTED if promote else Result.CANARY)


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
    say_more(place, 1000)
    made = improve(place, server)
    assert (made.version, made.verdict) == ("1.2.0", 2)
    assert [spec.alpha for spec in server.made.values()] == [pytest.approx(0.05 / 6)]


def test_two_calls_for_one_adapter_do_not_run_at_once(place, commands):
    with (
        state.alone(place / "work", "colours"),
        pytest.raises(FailedPrecondition, match="improved by process"),
    ):
        improve(place)


def test_feedback_that_is_not_understood_is_named_by_its_line(place, commands):
    write(place / "feedback.jsonl", [record(1), record(2, verdict="fine")])
    with pytest.raises(
        ConfigError,
        match=r"feedback.jsonl:2 is no feedback: verdict: Input should be 'good', 'bad' or 'corrected'",
    ):
        improve(place)
