"""A file of what was done and refused, in which nothing can be changed unseen."""

from __future__ import annotations

import errno
import json
import os
import stat
import threading
from pathlib import Path

import pytest

from router.access.audit import (
    START,
    Audit,
    AuditedCall,
    chained,
    last_hash,
    verify,
)
from router.errors import ConfigError
from tests.audited import entries


def act(number: int = 0, **more: str) -> AuditedCall:
    said = {"request_id": f"r-{number}", "client": "ops", "peer": "127.0.0.1", "method": "S/Load"}
    return AuditedCall(**{**said, "resource": "adapters/m", "code": "OK", **more})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Five lines."""
    path = tmp_path / "audit.jsonl"
    audit = Audit(path)
    for number in range(5):
        audit.acted(act(number)).result(5)
    audit.close()
    return path


def test_lines_say_what_was_done_and_follow_each_other(file: Path) -> None:
    found = verify(file)
    assert (found.lines, found.problems, found.first) == (5, (), START)
    assert found.last == last_hash(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    first = next(entries(file))
    assert {first[key] for key in ("client", "peer", "method", "resource", "code")} == {
        "ops",
        "127.0.0.1",
        "S/Load",
        "adapters/m",
        "OK",
    }
    assert "reason" not in first


def test_who_no_longer_waits_for_a_line_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit, free = Audit(tmp_path / "audit.jsonl"), threading.Event()
    append = audit._append
    monkeypatch.setattr(audit, "_append", lambda data: free.wait(10) and append(data))
    given_up = audit.acted(act(1))
    assert given_up.cancel()
    free.set()
    audit.acted(act(2)).result(10)
    audit.close()
    assert [line["request_id"] for line in entries(tmp_path / "audit.jsonl")] == ["r-1", "r-2"]


def test_what_is_changed_shows(file: Path) -> None:
    lines = file.read_text().splitlines()
    spoiled = {
        "changed": [lines[0], lines[1].replace("ops", "oops"), *lines[2:]],
        "taken out": [lines[0], *lines[2:]],
        "swapped": [lines[1], lines[0], *lines[2:]],
        "added": [*lines[:2], chained({"client": "x"}, START)[0], *lines[2:]],
        "field": [json.dumps({**json.loads(lines[0]), "code": "OK", "more": 1}), *lines[1:]],
        "junk": [*lines, "junk"],
        "twice": [*lines, lines[-1]],
    }
    for what, changed in spoiled.items():
        file.write_text("\n".join(changed) + "\n")
        assert verify(file).problems, what
    file.write_text("\n".join(lines[:3]) + "\n")
    assert not verify(file).problems
    assert verify(file).last != json.loads(lines[-1])["hash"]  # a tail that was cut off


def test_a_new_server_goes_on_with_the_chain(file: Path) -> None:
    audit = Audit(file)
    audit.acted(act(9)).result(5)
    audit.close()
    assert (verify(file).lines, verify(file).problems) == (6, ())


def test_a_second_server_on_the_same_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    first = Audit(path)
    with pytest.raises(
        ConfigError, match="another server writes it; give each server an audit file of its own"
    ):
        Audit(path)
    first.acted(act(1)).result(5)
    first.close()
    first.close()
    Audit(path).close()
    assert (verify(path).lines, verify(path).problems) == (1, ())


def test_a_file_that_another_server_began_meanwhile_is_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "audit.jsonl"
    first = Audit(path)
    first.acted(act(1)).result(5)
    path.rename(tmp_path / "old.jsonl")
    second = Audit(path)
    second.acted(act(2)).result(5)
    first.acted(act(3)).result(5)
    assert first.failed == 1
    assert "another server writes it" in caplog.records[-1].fields["problem"]  # type: ignore[attr-defined]
    first.close()
    second.close()
    assert (verify(path).lines, verify(path).problems) == (1, ())


def test_an_exception_in_the_writer_loses_its_line_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit = Audit(tmp_path / "audit.jsonl")
    append = audit._append

    def once(data: bytes) -> None:
        monkeypatch.setattr(audit, "_append", append)
        raise RuntimeError

    monkeypatch.setattr(audit, "_append", once)
    audit.acted(act(1)).result(5)
    audit.acted(act(2)).result(5)
    audit.close()
    assert audit.failed == 1
    assert [line["request_id"] for line in entries(tmp_path / "audit.jsonl")] == ["r-2"]


def test_the_hash_of_a_line_shows_that_a_file_still_has_it(file: Path) -> None:
    hashes = [line["hash"] for line in entries(file)]
    found = verify(file, hashes[3])
    assert (found.has, found.time) == (True, list(entries(file))[-1]["time"])
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:3]))
    assert not verify(file, hashes[3]).has
    assert verify(file).problems == ()  # the chain itself does not show it


def test_a_file_that_was_moved_away_is_begun_anew_in_the_same_chain(tmp_path: Path) -> None:
    path, old = tmp_path / "audit.jsonl", tmp_path / "old.jsonl"
    audit = Audit(path)
    audit.acted(act(1)).result(5)
    path.rename(old)
    audit.acted(act(2)).result(5)
    audit.close()
    assert verify(path).first == verify(old).last
    assert not verify(path).problems


def test_a_torn_line_is_told_and_stays_the_only_one(file: Path) -> None:
    with file.open("a") as torn:
        torn.write('{"time": "20')
    audit = Audit(file)
    audit.acted(act(9)).result(5)
    audit.close()
    found = verify(file)
    assert (found.lines, found.problems) == (7, ("line 6 was changed, or is not whole",))


def test_many_refusals_are_a_number(tmp_path: Path) -> None:
    path, clock = tmp_path / "audit.jsonl", [1000.0]
    audit = Audit(path, now=lambda: clock[0])
    for _ in range(1000):
        audit.refused(act(code="UNAUTHENTICATED"))
    clock[0] += 1
    audit.refused(act(code="UNAUTHENTICATED"))
    audit.close()
    found = list(entries(path))
    assert len(found) == 51
    assert [one.get("left_out") for one in found][-2:] == [None, 950]


def test_lines_are_bounded_and_one_line(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    audit = Audit(path)
    audit.acted(act(resource="x\n" * 10_000, client="\x1b[31m")).result(5)
    audit.close()
    assert len(path.read_bytes().splitlines()) == 1
    assert len(path.read_bytes()) < 2000
    assert path.read_bytes().isascii()


def test_a_disk_that_takes_nothing_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    audit = Audit(tmp_path / "audit.jsonl")

    def full(data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(audit, "_append", full)
    audit.acted(act(1)).result(5)
    assert audit.failed == 1
    assert "the audit file cannot be written" in caplog.text
    monkeypatch.undo()
    audit.acted(act(2)).result(5)
    audit.close()
    assert (verify(tmp_path / "audit.jsonl").lines, verify(tmp_path / "audit.jsonl").problems) == (1, ())


def test_what_the_disk_did_not_confirm_is_no_part_of_the_chain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "audit.jsonl"
    audit = Audit(file)

    def failing(handle: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    audit.acted(act(1)).result(5)
    monkeypatch.setattr("router.access.audit.os.fsync", failing)
    audit.acted(act(2)).result(5)
    monkeypatch.undo()
    audit.acted(act(3)).result(5)
    audit.close()
    assert (audit.failed, verify(file).lines, verify(file).problems) == (1, 2, ())


def test_a_file_that_cannot_be_is_an_error_at_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        Audit(tmp_path / "none" / "audit.jsonl")
    with pytest.raises(ConfigError, match="cannot be written"):
        Audit(tmp_path)


def test_a_refusal_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    audit = Audit(tmp_path / "audit.jsonl")
    go_on, written, sync = threading.Event(), list[int](), os.fsync

    def slow(handle: int) -> None:
        go_on.wait(60)
        written.append(handle)
        sync(handle)

    monkeypatch.setattr("router.access.audit.os.fsync", slow)
    for _ in range(50):
        audit.refused(act())
    assert written == []
    go_on.set()
    audit.close()
    assert written
