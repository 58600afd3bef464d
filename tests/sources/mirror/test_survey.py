"""When a folder of a store is finished."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from router.sources.store import OLD_SECONDS, QUIET_SECONDS, Remote, RemoteFolder, Survey
from tests.sources.mirror.conftest import CONFIG, MANIFEST, WEIGHTS

NOW = time.time()


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time at which the folders below were made, however long ago that was."""
    monkeypatch.setattr("router.sources.store.time", SimpleNamespace(time=lambda: NOW))


def folder(place: str = "a", **dates: float | None) -> RemoteFolder:
    """Files by when they were written, seconds after NOW."""
    names = {"config": CONFIG, "weights": WEIGHTS, "manifest": MANIFEST}
    files = [
        Remote(names[name], 1, f"{date}", modified=None if date is None else NOW + date)
        for name, date in dates.items()
    ]
    return RemoteFolder.of(place, files)


def looked(after: RemoteFolder, before: RemoteFolder | None = None, quiet: float = 5.0) -> list[str]:
    """What is ready `quiet` seconds after it was first seen, where `before` is here."""
    survey, here = Survey(), {} if before is None else {before.place: before.pin}
    assert survey.look({after.place: after}, here, 0.0).ready == []
    return [one.place for one in survey.look({after.place: after}, here, quiet).ready]


OLD = folder(config=-99, weights=-99, manifest=-99)


@pytest.mark.parametrize(
    ("now", "before", "ready"),
    [
        (folder(config=0, weights=1), None, True),
        (folder(config=0, weights=1, manifest=0), None, True),
        (folder(config=0, manifest=0), None, False),  # the weights are not there yet
        (folder(manifest=0), None, False),
        (folder(config=0, weights=1, manifest=2), OLD, True),
        (folder(config=0, weights=1, manifest=1), OLD, True),  # dates have whole seconds
        (folder(config=0, weights=2, manifest=1), OLD, False),
        (folder(config=-99, weights=-99, manifest=1), OLD, False),  # other weights may be on their way
        (folder(config=0, weights=1), OLD, False),  # nothing says that this is all
        (folder(config=0, weights=1, manifest=None), OLD, False),
    ],
)
def test_when_it_is_taken_at_the_second_look(now, before, ready):
    assert bool(looked(now, before)) is ready
    assert looked(now, before, QUIET_SECONDS) == ["a"]


def test_what_was_written_long_ago_is_finished():
    old = folder(config=-OLD_SECONDS - 9, manifest=-OLD_SECONDS - 9)
    assert looked(old) == ["a"]


def test_time_begins_again_with_each_change():
    survey, waiting = Survey(), {"a": folder(config=0)}
    survey.look(waiting, {}, 0.0)
    assert survey.look(waiting, {}, QUIET_SECONDS - 1).ready == []
    survey.look({"a": folder(config=1)}, {}, QUIET_SECONDS)
    assert survey.look({"a": folder(config=1)}, {}, QUIET_SECONDS + 5).ready == []


def test_what_is_here_is_not_taken_again():
    survey = Survey()
    for _ in range(3):
        due = survey.look({"a": OLD}, {"a": OLD.pin}, 0.0)
        assert (due.ready, due.gone, due.fresh) == ([], [], 0)


def test_gone_is_what_two_looks_do_not_have():
    survey = Survey()
    first = survey.look({}, {"a": OLD.pin}, 0.0)
    assert (first.gone, first.fresh) == ([], 1)
    assert survey.look({"a": OLD}, {"a": OLD.pin}, 1.0).gone == []
    assert survey.look({}, {"a": OLD.pin}, 2.0).gone == []
    assert survey.look({}, {"a": OLD.pin}, 3.0).gone == ["a"]
