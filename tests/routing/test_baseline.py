"""First decisions outlive a restart, for the very set that made them."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from router.routing.drift import BASELINE, FILE, LEAST, MOST, WINDOW, BaselineFile, DecisionCounts, Drift
from router.routing.policy import PlainRule
from router.types import AdapterProfile
from tests.routing.test_drift import USUAL, alarms, feed

LEGAL, MEDICAL = AdapterProfile("legal", "1"), AdapterProfile("medical", "1", examples=("old",))
COUNTS = DecisionCounts({"abstained": 300, "adapters/legal": 700}, 1000)


class Now:
    """What decides: changed by the tests."""

    def __init__(self, folder: Path) -> None:
        self.profiles, self.digest = [LEGAL, MEDICAL], "d"
        self.file = BaselineFile(folder, lambda: self.profiles, lambda: self.digest)


def test_a_baseline_is_of_one_set(tmp_path: Path) -> None:
    now = Now(tmp_path / "state")
    assert now.file.read() is None
    now.file.keep(COUNTS)
    now.file.close()
    later = Now(tmp_path / "state")
    assert later.file.read() == COUNTS
    later.profiles = [replace(MEDICAL, version="2"), LEGAL]
    assert later.file.read() == COUNTS
    for profiles in ([LEGAL], [LEGAL, replace(MEDICAL, examples=("newer",))]):
        later.profiles = profiles
        assert later.file.read() is None
    later.profiles, later.digest = [LEGAL, MEDICAL], "other"
    assert later.file.read() is None


def test_the_latest_are_remembered(tmp_path: Path) -> None:
    now = Now(tmp_path)
    for number in range(MOST + 3):
        now.digest = str(number)
        now.file.keep(DecisionCounts({"abstained": number + 1}, number + 1))
    now.file.close()
    found = []
    for number in range(MOST + 3):
        now.digest = str(number)
        found.append(now.file.read() is not None)
    assert found == [False] * 3 + [True] * MOST
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


@pytest.mark.parametrize(
    "said",
    [
        *(b"", b"{", b"[]", b"[" * 100_000, b"\xff", b'{"KEY": 1}', b'{"KEY": {"of": {"a": 1}}}'),
        *(b'{"KEY": {"of": {"a": 1}, "total": 2}}', b'{"KEY": {"of": {"a": 2, "b": -1}, "total": 1}}'),
        *(b'{"KEY": {"of": [1], "total": 1}}', b'{"KEY": {"of": {}, "total": 0}}'),
        b'{"KEY": {"of": {"a": 1e999}, "total": 1}}',
    ],
)
def test_a_file_that_cannot_be_used_counts_as_empty(tmp_path: Path, said: bytes) -> None:
    now = Now(tmp_path)
    (tmp_path / FILE).write_bytes(said.replace(b"KEY", now.file._key().encode()))
    assert now.file.read() is None
    now.file.keep(COUNTS)
    now.file.close()
    assert now.file.read() == COUNTS


def test_a_folder_that_takes_nothing_is_no_harm(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    now = Now(tmp_path / "file" / "state")
    now.file.keep(COUNTS)
    now.file.close()
    assert "could not be kept" in caplog.text
    assert now.file.read() is None


def test_drift_is_seen_over_a_restart(tmp_path: Path) -> None:
    rule, rng, now = PlainRule(), random.Random(8), Now(tmp_path)
    feed(Drift(lambda: rule, now.file), USUAL, WINDOW, rng)
    now.file.close()
    assert json.loads((tmp_path / FILE).read_text())
    again = Drift(lambda: rule, Now(tmp_path).file)
    feed(again, {**USUAL, "abstained": 0.9}, LEAST, rng)
    assert ("abstained", BASELINE) in alarms(again)
    other = Now(tmp_path)
    other.digest = "another calibration"
    fresh = Drift(lambda: rule, other.file)
    feed(fresh, {**USUAL, "abstained": 0.9}, LEAST, rng)
    assert fresh.seen.compared == ()
