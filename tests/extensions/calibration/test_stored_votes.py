"""Votes kept in a file."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from router.calibration.model import Binding, CalibrationError
from router.extensions.calibration.stored_votes import StoredVotes
from router.types import Vote, VoteError

BINDING = Binding({"legal": "a", "medical": "b"}, {"linear": "c", "probe": "d"}, "tiny")
SURE = Vote("linear", {"legal": 0.8, "medical": 0.1}, evidence="words", latency=0.2)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "votes.json"


def filled(path: Path) -> None:
    kept = StoredVotes(path, BINDING)
    kept.keep("who is liable?", SURE)
    kept.keep("hello", Vote("linear", declined=True))
    kept.keep("", Vote("probe", {}))
    kept.save()


def test_what_was_kept_is_found_again(path: Path) -> None:
    filled(path)
    kept = StoredVotes(path, BINDING)
    assert kept.get("linear", "who is liable?") == Vote("linear", SURE.scores)
    assert kept.get("linear", "hello") == Vote("linear", declined=True)
    assert kept.get("probe", "") == Vote("probe", {})
    assert kept.get("probe", "hello") is None


def test_keeping_gives_what_another_run_will_read(path: Path) -> None:
    kept = StoredVotes(path, BINDING)
    assert kept.keep("x", SURE) == kept.get("linear", "x")


def test_a_lost_vote_is_not_kept(path: Path) -> None:
    kept = StoredVotes(path, BINDING)
    lost = Vote("linear", error=VoteError.RAISED)
    assert kept.keep("x", lost) == lost
    assert kept.get("linear", "x") is None


@pytest.mark.parametrize(
    ("changed", "who_holds"),
    [
        ({"adapters": {"legal": "a", "medical": "new"}}, set()),
        ({"adapters": {"legal": "a"}}, set()),
        ({"base": "other"}, set()),
        ({"classifiers": {"linear": "new", "probe": "d"}}, {"probe"}),
        ({"classifiers": {"probe": "d", "linear": "c"}}, {"linear", "probe"}),
        ({"versions": {"legal": "2.0.0"}}, {"linear", "probe"}),
    ],
)
def test_votes_hold_for_what_made_them(path: Path, changed: dict[str, object], who_holds: set[str]) -> None:
    filled(path)
    kept = StoredVotes(path, dataclasses.replace(BINDING, **changed))  # type: ignore[arg-type]
    found = {name for name, text in (("linear", "hello"), ("probe", "")) if kept.get(name, text)}
    assert found == who_holds


@pytest.mark.parametrize(
    "said",
    [
        "",
        "[1]",
        '{"text": "a request"}',
        "\x80",
        json.dumps({"format": 1, "classifiers": {"linear": {"made_by": "x", "votes": {"y": [1]}}}}),
        json.dumps({"format": 1, "classifiers": {"linear": {"made_by": "x", "votes": {"y": {"z": "1"}}}}}),
        json.dumps({"format": 1, "classifiers": {"linear": {"votes": {}}}}),
    ],
)
def test_a_file_that_has_no_votes_is_refused(path: Path, said: str) -> None:
    path.write_bytes(said.encode("latin-1"))
    with pytest.raises(CalibrationError, match="no file of votes: name another one"):
        StoredVotes(path, BINDING)


def test_another_format_is_refused(path: Path) -> None:
    path.write_text('{"format": 2}')
    with pytest.raises(CalibrationError, match="has format 2, this version reads 1"):
        StoredVotes(path, BINDING)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="it must be a file of votes, or none yet"):
        StoredVotes(tmp_path, BINDING)


def test_a_place_that_is_not_there_is_named(tmp_path: Path) -> None:
    kept = StoredVotes(tmp_path / "missing" / "votes.json", BINDING)
    with pytest.raises(CalibrationError, match="votes cannot be kept there"):
        kept.save()
