"""Files that are read again when they change."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.errors import ConfigError
from router.reread import MOST_PROBLEM, RETRY_SECONDS, Reread, problem_of, read_file


def number(path: Path) -> int:
    try:
        return int(path.read_text())
    except ValueError:
        raise ConfigError("no number") from None


def test_a_change_is_seen_and_a_bad_one_is_not_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "n"
    path.write_text("1")
    found = Reread([path], lambda: number(path))
    assert (found.value(), found.problem) == (1, "")
    path.write_text("22")
    assert found.value() == 22
    path.write_text("bad")
    assert [found.value(), found.value()] == [22, 22]
    assert found.problem == "no number"
    assert [r.message for r in caplog.records if r.levelname == "ERROR"] == [
        "changed and not usable; the content before stays in force"
    ]
    path.unlink()
    assert found.value() == 22
    assert "No such file" in found.problem
    path.write_text("3")
    assert (found.value(), found.problem) == (3, "")


def test_a_file_that_was_just_emptied_is_not_read_until_it_has_content_or_time_passed(
    tmp_path: Path,
) -> None:
    path, clock = tmp_path / "n", SimpleNamespace(now=0.0)
    path.write_text("lines")
    found = Reread([path], path.read_text, lambda: clock.now)
    path.write_text("")
    assert found.value() == "lines"
    path.write_text("more lines")
    assert found.value() == "more lines"
    path.write_text("")
    assert found.value() == "more lines"
    clock.now = 1.0
    assert (found.value(), found.problem) == ("", "")


def test_a_replaced_file_of_the_same_size_and_time_is_seen(tmp_path: Path) -> None:
    path, other = tmp_path / "n", tmp_path / "m"
    path.write_text("1")
    found = Reread([path], lambda: number(path))
    other.write_text("2")
    before = path.stat()
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)
    assert found.value() == 2


def test_a_second_write_with_the_same_stat_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Times of a file system stand still for some milliseconds."""
    path, written = tmp_path / "n", time.time_ns()
    path.write_text("1")
    monkeypatch.setattr("router.reread.look", lambda _: (1, 1, written, written))
    found = Reread([path], lambda: number(path))
    path.write_text("2")
    end = time.monotonic() + 10
    while found.value() == 1 and time.monotonic() < end:
        time.sleep(0.01)
    assert found.value() == 2


def test_what_is_equal_stays_the_same_object(tmp_path: Path) -> None:
    path, made = tmp_path / "n", []
    path.write_text("1000")

    def make() -> list[str]:
        made.append(1)
        return [path.read_text()]

    found = Reread([path], make)
    first, end = found.value(), time.monotonic() + 10
    while len(made) < 2 and time.monotonic() < end:
        assert found.value() is first
        time.sleep(0.01)
    for _ in range(10):
        assert found.value() is first
    assert len(made) == 2


def test_it_is_made_again_only_after_a_change(tmp_path: Path) -> None:
    path, made = tmp_path / "n", []
    path.write_text("1")
    found = Reread([path], lambda: made.append(1))
    for _ in range(5):
        found.value()
    assert made == [1]


def test_at_first_what_is_wrong_is_raised(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Reread([tmp_path / "none"], lambda: number(tmp_path / "none"))


ERRORS = (
    OverflowError("date value out of range"),
    RecursionError("maximum recursion depth exceeded"),
    MemoryError(),
    KeyError("x"),
    AttributeError("x"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"),
    AssertionError(),
    StopIteration(),
    ValueError("two\nlines"),
    OSError(24, "Too many open files", "n"),
)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_any_exception_leaves_the_old_value_and_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    path, clock = tmp_path / "n", SimpleNamespace(now=0.0)
    path.write_text("1")

    def make() -> int:
        if path.read_text() == "2":
            raise error
        return int(path.read_text())

    found = Reread([path], make, lambda: clock.now)
    path.write_text("2")
    for _ in range(100):
        clock.now += 1.0
        assert found.value() == 1
    assert found.problem
    assert "\n" not in found.problem
    (line,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert line.exc_info is None
    path.write_text("3")
    assert (found.value(), found.problem) == (3, "")


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_is_no_exception_is_raised(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "n"
    path.write_text("1")

    def make() -> int:
        if path.read_text() == "2":
            raise error
        return 1

    found = Reread([path], make)
    path.write_text("2")
    with pytest.raises(error):
        found.value()


def test_a_cause_outside_the_file_passes(tmp_path: Path) -> None:
    """As no free descriptor: the file is good, and does not change again."""
    path, clock, down = tmp_path / "n", SimpleNamespace(now=0.0), [True]
    path.write_text("1")

    def make() -> int:
        if path.read_text() == "2" and down[0]:
            raise OSError(24, "Too many open files", str(path))
        return int(path.read_text())

    found = Reread([path], make, lambda: clock.now)
    path.write_text("2")
    assert found.value() == 1
    down[0] = False
    assert found.value() == 1
    clock.now += RETRY_SECONDS
    assert (found.value(), found.problem) == (2, "")


def test_only_a_regular_file_of_bounded_size_is_read(tmp_path: Path) -> None:
    path, pipe = tmp_path / "n", tmp_path / "pipe"
    path.write_bytes(b"12345")
    assert read_file(path, 5) == b"12345"
    with pytest.raises(OSError, match="more than 4 bytes"):
        read_file(path, 4)
    os.mkfifo(pipe)
    for odd in (pipe, tmp_path, Path("/dev/zero")):
        with pytest.raises(OSError, match=r"not a regular file|Is a directory"):
            read_file(odd)
    path.chmod(0o646)
    assert read_file(path) == b"12345"
    with pytest.raises(OSError, match="every user of this machine may write it"):
        read_file(path, private=True)


@given(st.text())
def test_a_problem_is_one_bounded_line(text: str) -> None:
    for error in (ConfigError(text), OSError(5, text, text), ValueError(text), RuntimeError()):
        found = problem_of(error)
        assert len(found) <= MOST_PROBLEM
        assert len(found.splitlines()) <= 1
