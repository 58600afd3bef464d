"""The folder that servers watch."""

from __future__ import annotations

import stat

import pytest

from router.registry.disk.places import Scanner
from router.sources.fetching import Copies
from router.sources.staging import SourceRecord
from tests.sources.mirror.conftest import CONFIG

SAID = "s3://bucket/"


def writing(pin: str):
    def fill(folder) -> None:
        (folder / CONFIG).write_text(pin)
        SourceRecord(SAID, "", pin).write(folder)

    return fill


@pytest.fixture
def copies(tmp_path) -> Copies:
    made = Copies(tmp_path, SAID)
    assert made.pins() == {}
    return made


def seen(copies: Copies) -> list[str]:
    found = Scanner([copies.root]).scan().found
    return sorted(str(path.relative_to(copies.root)) for path in found)


def test_what_was_put_is_known_after_a_restart(copies, tmp_path):
    copies.put("a", writing("1")), copies.put("b/1.0.0", writing("2")), copies.put("b/1.1.0", writing("3"))
    assert Copies(tmp_path, SAID).pins() == {"a": "1", "b/1.0.0": "2", "b/1.1.0": "3"}
    assert seen(copies) == ["a", "b/1.0.0", "b/1.1.0"]


def test_what_another_put_there_has_no_pin(copies, tmp_path):
    (copies.root / "mine").mkdir()
    (copies.root / "calibration.json").touch()
    copies.put("a", writing("1"))
    assert Copies(tmp_path, "s3://other/").pins() == {"a": "", "mine": ""}


def test_a_fill_that_fails_changes_nothing(copies, tmp_path):
    copies.put("a", writing("1"))
    with pytest.raises(ZeroDivisionError):
        copies.put("a", lambda folder: 1 / 0)
    assert Copies(tmp_path, SAID).pins() == {"a": "1"}
    assert list((tmp_path / "staging").iterdir()) == []


def test_what_was_left_half_done_goes(copies, tmp_path):
    (tmp_path / "staging/left/being-added").mkdir(parents=True)
    Copies(tmp_path, SAID).pins()
    assert list((tmp_path / "staging").iterdir()) == []


def test_the_last_version_takes_its_name_along(copies):
    copies.put("a/1", writing("1")), copies.put("a/2", writing("2"))
    copies.remove("a/1")
    assert seen(copies) == ["a/2"]
    copies.remove("a/2"), copies.remove("a/2")
    assert list(copies.root.iterdir()) == []


def test_nobody_else_may_look_in(copies, tmp_path):
    for folder in (copies.root, tmp_path / "staging"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
