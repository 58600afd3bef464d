"""A store that is followed: what comes, changes, goes, and what goes wrong."""

from __future__ import annotations

import errno
import json
import logging
import os
import threading
import time

import pytest

from router.errors import ConfigError, NotFound, PermissionDenied
from router.sources import mirror as module
from tests.sources.mirror.conftest import MANIFEST, WEIGHTS, as_put, here, other, path_of, settle, turns


def test_a_folder_comes_when_two_looks_agree(bucket, make, adapter):
    mirror = make()
    mirror.turn()
    bucket.put("contracts", adapter)
    mirror.turn()
    assert here(mirror) == {}
    mirror.turn()
    assert here(mirror) == as_put(contracts=adapter)


def test_the_second_look_comes_soon(bucket, make, adapter):
    mirror = make(seconds=60)
    assert mirror.turn() == 60
    bucket.put("contracts", adapter)
    assert mirror.turn() == module.SECOND_LOOK
    assert mirror.turn() == 60


def test_the_longer_a_listing_takes_the_rarer_it_is_made(bucket, make, adapter, monkeypatch):
    mirror = make()
    real = mirror._store.listing
    monkeypatch.setattr(mirror._store, "listing", lambda: time.sleep(0.03) or real())
    assert mirror.turn() >= 0.03 / module.SHARE
    monkeypatch.setattr(module, "SECOND_LOOK", 0.0)
    bucket.put("a", adapter)
    assert 0.03 <= mirror.turn() < 0.03 / module.SHARE, "soon, and still no more than half of the time"


def test_what_was_begun_and_never_ended_goes_after_a_week(bucket, make, tmp_path):
    old, new = tmp_path / "mirrors/one/fetching/old", tmp_path / "mirrors/one/fetching/new"
    old.mkdir(parents=True), new.mkdir()
    os.utime(old, (0, time.time() - module.KEPT_SECONDS - 9))
    make().turn()
    assert (old.exists(), new.exists()) == (False, True)


def test_the_status_is_written_when_it_changes(bucket, make, adapter, tmp_path):
    bucket.put("a", adapter)
    mirror = make()
    turns(mirror)
    before = (tmp_path / "mirrors/one/status.json").stat().st_ino
    turns(mirror, 3)
    assert (tmp_path / "mirrors/one/status.json").stat().st_ino == before
    bucket.drop("a")
    turns(mirror)
    assert json.loads((tmp_path / "mirrors/one/status.json").read_text())["folders"] == 0


def test_versions_and_names(bucket, make, adapter):
    bucket.put("contracts/1.0.0", adapter), bucket.put("contracts/1.1.0", other(adapter))
    bucket.put("medical", adapter)
    mirror = make()
    turns(mirror)
    wanted = {"contracts__1.0.0": adapter, "contracts__1.1.0": other(adapter), "medical": adapter}
    assert here(mirror) == as_put(**wanted)
    assert (mirror.status.folders, mirror.flaw) == (3, "")


def test_nothing_is_asked_for_but_the_listing_while_nothing_changes(bucket, make, adapter):
    bucket.put("contracts", adapter)
    mirror = make()
    turns(mirror)
    bucket.asked.clear()
    turns(mirror, 3)
    assert bucket.asked == {"ls": 6}  # the prefix and the folder


def test_what_is_removed_goes_after_two_looks(bucket, make, adapter):
    bucket.put("a/1.0.0", adapter), bucket.put("b", adapter)
    mirror = make()
    turns(mirror)
    bucket.drop("a/1.0.0")
    mirror.turn()
    assert "a/1.0.0/adapter.toml" in here(mirror)
    mirror.turn()
    assert here(mirror) == as_put(b=adapter)
    assert not path_of(mirror, "a").exists()


def test_what_is_gone_for_one_look_stays(bucket, make, adapter):
    bucket.put("a", adapter)
    mirror = make()
    turns(mirror)
    bucket.drop("a")
    mirror.turn()
    bucket.put("a", adapter)
    turns(mirror, 3)
    assert here(mirror) == as_put(a=adapter)


def test_a_store_that_is_suddenly_empty_takes_nothing_away(bucket, make, adapter):
    bucket.put("a", adapter), bucket.put("b", adapter)
    mirror = make()
    turns(mirror)
    bucket.drop("a"), bucket.drop("b")
    turns(mirror, 3)
    assert here(mirror) == as_put(a=adapter, b=adapter)
    assert "lists no adapter at all" in mirror.flaw


def test_a_replaced_one_is_never_half_one_half_the_other(bucket, make, adapter, monkeypatch):
    bucket.put("a", adapter)
    mirror = make()
    turns(mirror)
    new = {**other(adapter), MANIFEST: b'[adapter]\nname = "contracts"\ndomain = "legal"\n'}
    bucket.put("a", {MANIFEST: new[MANIFEST]})
    turns(mirror, 5)  # the weights may still be on their way
    assert here(mirror) == as_put(a=adapter)
    bucket.put("a", {WEIGHTS: new[WEIGHTS]})
    turns(mirror, 5)
    assert here(mirror) == as_put(a=adapter)
    bucket.put("a", {MANIFEST: new[MANIFEST]})  # last
    turns(mirror)
    assert here(mirror) == as_put(a=new)


def test_what_stays_quiet_is_taken_in_whatever_order_it_came(bucket, make, adapter, monkeypatch):
    bucket.put("a", adapter)
    mirror = make()
    turns(mirror)
    bucket.put("a", {WEIGHTS: other(adapter)[WEIGHTS]})
    turns(mirror)
    settle(monkeypatch, 31)
    mirror.turn()
    assert here(mirror) == as_put(a=other(adapter))


def test_an_unfinished_one_is_shown_to_the_registry_when_nobody_goes_on(bucket, make, adapter, monkeypatch):
    half = {name: data for name, data in adapter.items() if name != WEIGHTS}
    bucket.put("a", half)
    mirror = make()
    turns(mirror, 4)
    assert here(mirror) == {}
    assert mirror.status.whole, "nobody waits for it"
    settle(monkeypatch, 31)
    mirror.turn()
    assert here(mirror) == as_put(a=half)


def test_a_folder_becomes_versions_and_back(bucket, make, adapter):
    bucket.put("a", adapter)
    mirror = make()
    turns(mirror)
    bucket.drop("a"), bucket.put("a/1.0.0", adapter)
    turns(mirror)
    assert here(mirror) == as_put(**{"a__1.0.0": adapter})
    bucket.put("a", adapter)
    turns(mirror)
    assert here(mirror) == as_put(a=adapter)


def test_a_store_that_is_away(bucket, make, adapter, caplog):
    bucket.put("a", adapter)
    mirror = make()
    turns(mirror)
    bucket.fault = ConnectionError("reset by peer")
    with caplog.at_level(logging.INFO):
        turns(mirror, 3)
    assert here(mirror) == as_put(a=adapter)
    assert mirror.flaw.startswith("adapters of memory://bucket/adapters/ do not follow it since 2")
    assert "cannot be read: ConnectionError: reset by peer" in mirror.flaw
    assert caplog.text.count("reset by peer; what is here stays") == 1
    assert 0 < mirror.behind_seconds < 60
    bucket.fault = None
    bucket.put("b", adapter)
    with caplog.at_level(logging.INFO):
        turns(mirror)
    assert here(mirror) == as_put(a=adapter, b=adapter)
    assert (mirror.flaw, mirror.behind_seconds) == ("", 0)
    assert "follows the store again" in caplog.text


def test_a_store_that_does_not_answer_is_told(bucket, make, monkeypatch):
    mirror = make()
    turns(mirror)
    said = []
    monkeypatch.setattr(module, "SILENT_SECONDS", 1e-9)

    def listing():
        said.append((mirror.flaw, mirror.behind_seconds > 0))
        return {}

    monkeypatch.setattr(mirror._store, "listing", listing)
    mirror.turn()
    assert said == [("memory://bucket/adapters/ has not answered for 0 s", True)]
    assert mirror.flaw == ""


def test_a_restart_asks_for_nothing_again(bucket, make, adapter):
    bucket.put("a", adapter), bucket.put("b/1.0.0", adapter)
    first = make()
    turns(first)
    first.close()
    bucket.asked.clear()
    second = make()
    second.turn()
    assert second.status.whole
    turns(second)
    assert bucket.asked["cat"] == 0
    assert here(second) == here(first)


def test_a_restart_while_the_store_is_away_serves_what_is_here(bucket, make, adapter):
    bucket.put("a", adapter)
    first = make()
    turns(first)
    first.close()
    bucket.fault = TimeoutError("slow")
    second = make()
    second.turn()
    assert second.wrong is None
    assert second.status.folders == 1
    assert here(second) == as_put(a=adapter)


@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        (PermissionError("Forbidden"), PermissionDenied, "may not be read with these credentials"),
        (FileNotFoundError("NoSuchBucket"), NotFound, "not found: nothing is there, or you may not see it"),
    ],
)
def test_what_is_wrong_at_the_first_look_is_for_somebody_to_mend(bucket, make, fault, kind, message):
    bucket.fault = fault
    mirror = make()
    mirror.turn()
    assert isinstance(mirror.wrong, kind)
    assert message in str(mirror.wrong)


def test_credentials_that_run_out_later_are_a_flaw(bucket, make, adapter):
    bucket.put("a", adapter)
    mirror = make()
    turns(mirror)
    bucket.fault = PermissionError("Expired")
    mirror.turn()
    assert mirror.wrong is None
    assert "may not be read with these credentials" in mirror.flaw
    assert here(mirror) == as_put(a=adapter)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("https://example.org/x", "adapters come from"),
        ("s3://key:secret@bucket/x", "leave secrets out"),
        ("none://bucket/x", "none"),
    ],
)
def test_what_can_be_no_store(make, url, message):
    with pytest.raises(ConfigError, match=message):
        make(url)


def test_one_of_two_servers_follows_for_both(bucket, make, adapter):
    bucket.put("a", adapter)
    first, second = make(), make()
    turns(first), second.turn()
    assert here(second) == as_put(a=adapter)
    assert second.status == first.status
    bucket.asked.clear()
    second.turn()
    assert bucket.asked["ls"] == 0
    bucket.fault = ConnectionError("reset")
    first.turn(), second.turn()
    assert second.flaw == first.flaw != ""
    bucket.fault = None
    first.close()
    bucket.put("b", adapter)
    turns(second)
    assert here(second) == as_put(a=adapter, b=adapter)
    second.close()


def test_a_status_that_cannot_be_read_is_none(bucket, make, tmp_path):
    first, second = make(), make()
    first.turn()
    (tmp_path / "mirrors/one/status.json").write_text(json.dumps({"no": 1}))
    second.turn()
    assert not second.status.whole
    first.close()


def test_what_is_too_large_is_refused_once_and_the_old_one_stays(bucket, make, adapter, caplog):
    bucket.put("a", adapter)
    size = sum(map(len, adapter.values()))
    mirror = make(most_bytes=size)
    turns(mirror)
    bucket.put("a", {**adapter, WEIGHTS: adapter[WEIGHTS] * 2}), bucket.put("b", adapter)
    with caplog.at_level(logging.WARNING):
        turns(mirror, 4)
    assert here(mirror) == as_put(a=adapter, b=adapter)
    assert caplog.text.count("host_memory_mb has room for") == 1
    assert (mirror.status.refused, mirror.flaw) == (1, "")
    bucket.put("a", other(adapter))
    turns(mirror)
    assert here(mirror) == as_put(a=other(adapter), b=adapter)
    assert mirror.status.refused == 0
    bucket.put("c", {**adapter, WEIGHTS: adapter[WEIGHTS] * 2})
    turns(mirror)
    assert mirror.status.refused == 1
    bucket.drop("c")
    turns(mirror, 3)
    assert (mirror.status.refused, mirror.flaw) == (0, "")


def test_one_that_may_not_be_read_holds_up_no_other(bucket, make, adapter):
    for name in "abc":
        bucket.put(name, other(adapter, name.encode()))

    def forbidden(path):
        if "/a/" in path:
            raise PermissionError(path)

    bucket.before_read = forbidden
    mirror = make()
    turns(mirror)
    assert set(here(mirror)) == set(as_put(b=adapter, c=adapter))
    assert "may not be read" in mirror.flaw
    assert not mirror.status.whole


def test_a_large_one_holds_up_no_other(bucket, make, adapter, monkeypatch):
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.05)
    bucket.put("small", adapter), bucket.put("gone", other(adapter, b"g"))
    mirror = make()
    turns(mirror, 3)
    go_on = threading.Event()
    read = []

    def slow(path):
        read.append(path)
        if "/large/" in path:
            go_on.wait(20)

    bucket.before_read = slow
    bucket.put("large", other(adapter, b"l"))
    turns(mirror)
    assert "large" not in mirror._pins
    bucket.drop("gone"), bucket.put("new", other(adapter, b"n"))
    wanted = set(as_put(small=adapter, new=adapter))
    for _ in range(20):  # a look is over after LOOK_SECONDS, however busy the machine is
        turns(mirror)
        if set(here(mirror)) == wanted and mirror.flaw == "":
            break
    assert (set(here(mirror)), mirror.flaw) == (wanted, "")
    monkeypatch.setattr(module, "SILENT_SECONDS", 1e-9)
    assert "has not answered for 0 s" in mirror.flaw
    go_on.set()
    monkeypatch.setattr(module, "LOOK_SECONDS", 5.0)
    mirror.turn()
    assert set(here(mirror)) == set(as_put(small=adapter, new=adapter, large=adapter))
    assert (len(read), len(set(read)), mirror.flaw) == (2, 2, ""), "the weights of both, once"


@pytest.fixture
def hanging(bucket, adapter, monkeypatch):
    """The only folder comes when the test is over."""
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.05)
    go_on = threading.Event()
    bucket.before_read = lambda path: go_on.wait(20)
    bucket.put("a", adapter)
    yield
    go_on.set()


def test_while_something_is_under_way_the_first_mirror_is_not_whole(hanging, make, monkeypatch):
    mirror = make(seconds=0.05)
    turns(mirror)
    monkeypatch.setattr(mirror, "_seconds", 60.0)
    monkeypatch.setattr(mirror._downloads, "finished", lambda seconds: ())
    assert mirror.turn() == module.SECOND_LOOK
    assert not mirror.status.whole
    assert mirror.flaw == "not all adapters of memory://bucket/adapters/ are here yet"


def test_who_hangs_keeps_the_folder_until_its_process_ends(hanging, make):
    first, second = make(), make()
    turns(first)
    first.close()
    second.turn()
    assert second._leads is None


def test_what_failed_and_is_gone_is_no_fault_any_more(bucket, make, adapter, monkeypatch):
    monkeypatch.setattr(module, "LONGEST_PAUSE", 0.0)
    bucket.put("a", adapter), bucket.put("b", other(adapter))

    def broken(path):
        if "/a/" in path:
            raise ConnectionError("reset")

    bucket.before_read = broken
    mirror = make()
    turns(mirror)
    assert "reset" in mirror.flaw
    bucket.drop("a")
    turns(mirror)
    assert mirror.flaw == ""


def test_a_store_that_goes_away_in_the_middle_is_not_asked_for_thousands(bucket, make, adapter, monkeypatch):
    for number in range(60):
        bucket.put(f"a{number}", other(adapter, bytes([number])))
    monkeypatch.setattr(module, "LONGEST_PAUSE", 0.0)
    gone = []

    def away(path):
        if bucket.asked["cat"] > 10:
            gone.append(path)
            raise ConnectionError("reset")

    bucket.before_read = away
    mirror = make()
    turns(mirror)
    assert module.MOST_FAULTS <= len(gone) <= module.MOST_FAULTS + module.FETCHERS
    assert "reset" in mirror.flaw
    bucket.before_read = lambda path: None
    turns(mirror)
    assert (mirror.status.folders, mirror.flaw) == (60, "")


def test_what_failed_comes_last_the_next_time(bucket, make, adapter, monkeypatch):
    monkeypatch.setattr(module, "LONGEST_PAUSE", 0.0)
    monkeypatch.setattr(module, "FETCHERS", 1)
    monkeypatch.setattr(module, "MOST_FAULTS", 1)
    for name in "ab":
        bucket.put(name, other(adapter, name.encode()))

    def broken(path):
        if "/a/" in path:
            raise ConnectionError("reset")

    bucket.before_read = broken
    mirror = make()
    turns(mirror)
    assert here(mirror) == {}
    mirror.turn()
    assert set(here(mirror)) == set(as_put(b=adapter))


def test_of_many_the_log_has_one_line(bucket, make, adapter, monkeypatch, caplog):
    monkeypatch.setattr(module, "FEW", 2)
    for number in range(3):
        bucket.put(f"a{number}", adapter)
    with caplog.at_level(logging.INFO):
        turns(make())
    assert [record.message for record in caplog.records] == ["mirrored"]


def test_a_disk_that_is_full(bucket, make, adapter, monkeypatch):
    bucket.put("a", adapter)
    mirror = make()
    monkeypatch.setattr("router.sources.fetching._free", lambda _: 0)
    turns(mirror)
    assert "No space left on device (0 bytes are free): make room" in mirror.flaw
    assert here(mirror) == {}
    monkeypatch.setattr("router.sources.fetching._free", lambda _: 1 << 40)
    turns(mirror)
    assert (here(mirror), mirror.flaw) == (as_put(a=adapter), "")


def test_a_disk_that_fills_up_while_it_is_written(bucket, make, adapter, monkeypatch):
    bucket.put("a", adapter)
    mirror = make()
    with monkeypatch.context() as patched:

        def full(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        patched.setattr("router.sources.transfer.os.write", full)
        turns(mirror)
    assert mirror.flaw.endswith("are free): make room")
    turns(mirror)
    assert (here(mirror), mirror.flaw) == (as_put(a=adapter), "")


def test_the_first_mirror_is_shown_in_bytes(bucket, make, adapter):
    bucket.put("a", adapter)
    seen = []
    mirror = make(shown=lambda *one: seen.append(one))
    turns(mirror)
    size = sum(map(len, adapter.values()))
    assert seen[-1] == ("memory://bucket/adapters/", size, size)
    assert all(done <= size for _, done, _ in seen)


def test_a_server_that_stops_takes_it_up_again(bucket, make, adapter, monkeypatch):
    monkeypatch.setattr("router.extensions.object_store.store.BLOCK", 300)
    bucket.put("a", adapter)
    mirror = make()

    def stopping(path):
        if path.endswith(WEIGHTS) and bucket.asked["cat"] > 3:
            mirror.stop()

    bucket.before_read = stopping
    turns(mirror)
    mirror.close()
    assert "stopping" not in mirror.flaw, "that is no fault of the store"
    assert here(mirror) == {}
    came, bucket.fetched = bucket.fetched, 0
    assert came > 300
    second = make()
    turns(second)
    assert here(second) == as_put(a=adapter)
    assert bucket.fetched == sum(map(len, adapter.values())) - came


def test_the_thread_follows_by_itself(bucket, make, adapter):
    mirror = make()
    mirror.start()
    try:
        bucket.put("a", adapter)
        for _ in range(300):
            if here(mirror) == as_put(a=adapter):
                break
            mirror._stop.wait(0.01)
        assert here(mirror) == as_put(a=adapter)
    finally:
        mirror.close()
    assert not mirror._thread.is_alive()


def test_a_disk_that_fails_is_told(bucket, make, adapter, monkeypatch):
    bucket.put("a", adapter)
    mirror = make()

    def broken(self, target, *, replace):
        raise OSError(errno.EIO, "Input/output error", str(target))

    with monkeypatch.context() as patched:
        patched.setattr("router.sources.staging.StagingArea.publish", broken)
        turns(mirror)
    assert mirror.flaw.endswith("/adapters/a: Input/output error")
    turns(mirror)
    assert (here(mirror), mirror.flaw) == (as_put(a=adapter), "")


def test_a_bug_is_no_fault_of_the_store(bucket, make, adapter, monkeypatch):
    bucket.put("a", adapter)
    mirror = make()
    monkeypatch.setattr("router.sources.fetching.taken", lambda *_: 1 / 0)
    mirror.turn()
    with pytest.raises(ZeroDivisionError):
        mirror.turn()


def test_a_look_that_fails_as_nobody_thought_is_logged_and_tried_again(bucket, make, monkeypatch, caplog):
    mirror = make()
    monkeypatch.setattr(mirror._store, "listing", lambda: 1 / 0)
    mirror.start()
    while not mirror.looked:
        mirror._stop.wait(0.01)
    mirror.close()
    assert caplog.text.count("failed; it is tried again") == 1
    assert "ZeroDivisionError" in mirror.flaw
