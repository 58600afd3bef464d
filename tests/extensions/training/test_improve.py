"""`lora-router adapters improve`: rows out of feedback, and the verdict."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest

from router.cli.main import run
from router.errors import FailedPrecondition
from router.extensions.training import improve as improving
from router.extensions.training.data import load_splits
from router.extensions.training.evaluation.versions import ComparedRow, VersionComparison
from router.extensions.training.improve import (
    ImproveRequest,
    digest_of,
    gains,
    improve,
    level,
    losses,
    rows_from,
    verdicts,
    write_recipe,
)
from router.extensions.training.recipe import load_recipe
from router.extensions.training.run import train
from router.feedback.model import Feedback
from router.paired import difference
from tests.extensions.training.tiny import COLOURS


def said(place, **changes):
    made = Feedback(
        f"r{place}", 100.0 + place, "", f"user-{place}", "colours", "1.0.0", "corrected",
        (("user", f"shade of thing {place}?"),), "blue", "red",
    )  # fmt: skip
    return replace(made, **changes)


@pytest.fixture
def own(recipe):
    """The recipe and its splits, with enough rows for a verdict."""
    for name, start, count in (("valid", 100, 100), ("test", 200, 150)):
        rows = [
            {"prompt": f"colour of {n}?", "response": COLOURS[n % 3]} for n in range(start, start + count)
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (recipe.parent / f"{name}.jsonl").write_text(lines)
    made = load_recipe(recipe)
    return made, load_splits(made.data)


def test_rows_of_a_user_stand_on_one_side_until_they_were_judged(own):
    feedback = [said(n, unit=f"user-{n % 60}") for n in range(120)]
    taken = rows_from(feedback, *own)
    units = [{row.unit for row in side} for side in (taken.train, taken.held_out)]
    assert all(units)
    assert not units[0] & units[1]
    again = rows_from(feedback, *own, {digest_of(unit) for unit in units[1]})
    assert (len(again.train), len(again.held_out)) == (120, 0)


@pytest.mark.parametrize(
    ("feedback", "why"),
    [
        ([said(1, verdict="bad")], "bad, without a corrected text"),
        ([said(1), said(2, messages=said(1).messages, corrected="green")], "units contradict each other"),
        ([said(1), said(2, messages=said(1).messages)], "another unit's row has this prompt"),
        ([said(1), said(1, time=1.0, corrected="green")], "the unit sent newer feedback on this prompt"),
        ([said(1, messages=(("user", "Colour of  210?"),))], "the prompt is a row of the recipe"),
        ([said(n, unit="one") for n in range(30)], "more rows than one unit may give"),
    ],
)
def test_feedback_that_gives_no_row_is_counted_by_reason(own, feedback, why):
    taken = rows_from(feedback, *own)
    assert len(taken.train) + len(taken.held_out) < len(feedback)
    assert [reason for reason in taken.left if reason.startswith(why)]
    assert why in taken.summary()


def test_correction_to_no_label_is_left_out_and_labels_are_spelt_as_they_are(own):
    made, splits = own
    labels = made.generation.model_copy(update={"choices": COLOURS})
    made = made.model_copy(update={"generation": labels})
    taken = rows_from([said(1, corrected="RED "), said(2, corrected="reddish")], made, splits)
    assert [row.response for row in (*taken.train, *taken.held_out)] == ["red"]
    assert taken.left == {"the response is none of the adapter's labels": 1}


def compared(changes):
    rows = [ComparedRow("p", "a", "b", change) for change in changes]
    gap = difference(changes, [0.0] * len(changes), range(len(changes)))
    return VersionComparison("old", "new", "exact match", 0.0, 1.0, gap, 1.0, 1.0, 0, rows)


@pytest.mark.parametrize("changes", [[1.0] * 3 + [0.0] * 57, [-1.0] * 20 + [0.0] * 40])
def test_gain_that_is_not_shown_is_said(changes):
    text, better = gains(compared(changes), 1)
    assert not better
    assert "no gain is shown" in text


def test_gain_that_one_verdict_shows_needs_more_after_others():
    found = compared([1.0] * 7 + [0.0] * 50)  # one-sided p is 1/128
    assert [gains(found, number)[1] for number in (1, 2, 3)] == [True, True, False]


def test_all_verdicts_on_a_version_err_in_five_percent_together():
    assert sum(level(verdict) for verdict in range(1, 100_000)) == pytest.approx(0.05, abs=1e-5)


def test_loss_that_is_not_excluded_is_said():
    assert losses(compared([0.0] * 300)) == ""
    found = losses(compared([-1.0] * 6 + [1.0] * 6 + [0.0] * 288))
    assert found.startswith("it may forget: 0.0 points (")
    assert "on 300 validation and test rows" in found


class FakeServer:
    """What a run asks of a server."""

    def __init__(self, kept):
        ref = SimpleNamespace(version="1.0.0")
        self.adapters = SimpleNamespace(get=lambda name: SimpleNamespace(ref=ref))
        self.feedback = SimpleNamespace(list=lambda name: iter(kept))


@pytest.fixture
def server():
    return FakeServer([said(place) for place in range(160)])


@pytest.fixture
def request_(tmp_path, own, recipe, tiny_base, monkeypatch):
    """An adapter that serves, with its recipe."""
    for name, value in (("MODEL", str(tiny_base)), ("NATIVE", "false"), ("DEVICE", "cpu")):
        monkeypatch.setenv(f"LORA_ROUTER_{name}", value)
    monkeypatch.chdir(tmp_path)
    train(recipe, tmp_path / "adapters" / "colours", work=tmp_path, device="cpu")
    return ImproveRequest("colours", str(tiny_base), "cpu", recipes=recipe.parent)


def test_version_without_a_gain_is_said_and_its_users_do_not_judge_again(
    request_, server, monkeypatch, capsys
):
    monkeypatch.setattr(improving, "gains", lambda *_: ("no gain is shown", False))
    assert not improve(request_, server, print)
    assert "no better" in capsys.readouterr().out
    (verdict,) = verdicts(request_.folder)
    assert (verdict["against"], verdict["version"], verdict["better"]) == ("1.0.0", "1.1.0", False)
    assert (request_.folder / "version" / "adapter.toml").is_file()
    kept = [file.read_text() for file in request_.work.rglob("*.json*")]
    assert not any("shade of thing" in text for text in kept)
    with pytest.raises(FailedPrecondition, match=r"0 users held out.*who were in no comparison before"):
        improve(request_, server, print)


def test_better_version_is_trained_and_what_is_next_is_said(request_, server, monkeypatch, capsys):
    monkeypatch.setattr(improving, "losses", lambda _: "")
    monkeypatch.setattr(improving, "gains", lambda *_: ("+50 points", True))
    assert improve(request_, server, print)
    said = capsys.readouterr().out
    assert "colours@1.1.0 in runs/improve/colours/version: better: +50 points" in said
    assert "lora-router adapters add runs/improve/colours/version" in said


def test_no_better_version_has_an_exit_code(server, monkeypatch):
    @contextmanager
    def connected(*_):
        yield server

    monkeypatch.setattr("router.cli.connect.connected", connected)
    monkeypatch.setattr("os.nice", lambda _: 0)
    monkeypatch.setattr(improving, "improve", lambda *_: False)
    assert run(["adapters", "improve", "colours"]) == 3


def test_recipe_of_the_next_version_mixes_feedback_and_own_rows(own, recipe, tmp_path):
    made, splits = own
    taken = rows_from([said(place) for place in range(100)], made, splits)
    aside = tmp_path / "aside"
    aside.mkdir()
    (tmp_path / "adapter_model.safetensors").touch()
    found = load_recipe(write_recipe(aside, recipe, made, taken, splits, "1.1.0", tmp_path))
    assert (found.adapter.version, found.lora.start, found.lora.rank) == ("1.1.0", tmp_path, made.lora.rank)
    trained = load_splits(found.data).train
    assert len(trained) >= len(taken.train)
    assert {row.prompt for row in trained} >= {row.prompt for row in taken.train}
