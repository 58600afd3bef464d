"""Live pick-up: new, changed, broken, removed."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from router.plugins import PluginHost

Write = Callable[..., Path]

NAMED = """
class C(Classifier):
    name = "{}"
    def classify_batch(self, requests):
        return [None] * len(requests)
@hookimpl
def register_classifiers(register):
    register(C())
"""


def names(host: PluginHost) -> list[str]:
    return [r.name for r in host.registrations()]


def test_nothing_changed_means_nothing_reloaded(folder: Path, write: Write) -> None:
    write("shout.py")
    host = PluginHost([folder])
    assert host.refresh()
    before = host.registrations()
    assert not host.refresh()
    assert host.registrations() == before


def test_a_changed_file_becomes_a_new_module_and_the_old_one_goes(folder: Path, write: Write) -> None:
    write("c.py", NAMED.format("one"))
    host = PluginHost([folder])
    host.refresh()
    (old,) = host.registrations()
    write("c.py", NAMED.format("two"))  # same size, within the same second
    assert host.refresh()
    (new,) = host.registrations()
    assert new.name == "two"
    assert type(old.classifier).__module__ not in sys.modules
    assert type(new.classifier).__module__ in sys.modules


def test_a_broken_new_version_keeps_the_old_one_and_shows_the_error(folder: Path, write: Write) -> None:
    write("c.py", NAMED.format("one"))
    host = PluginHost([folder])
    host.refresh()
    before = host.registrations()
    write("c.py", "1 / 0")
    assert not host.refresh()
    assert host.registrations() == before
    assert "ZeroDivisionError" in host.status()[0].error
    assert host.flaws == [f"plugin c: {host.status()[0].error}"]
    write("c.py", NAMED.format("three"))
    assert host.refresh()
    assert (names(host), host.status()[0].error, host.flaws) == (["three"], "", [])


async def test_a_refresh_that_fails_is_logged_once_and_shown_and_tried_again(
    folder: Path, write: Write, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write("shout.py")
    host = PluginHost([folder])
    await host.pick_up()

    def fail(_: object) -> None:
        raise OverflowError("out of range")

    monkeypatch.setattr("router.plugins.host.scan", fail)
    write("more.py", NAMED.format("more"))
    for _ in range(5):
        await host.pick_up()
    assert names(host) == ["shout"]
    (flaw,) = host.flaws
    assert flaw.startswith("plugins cannot be refreshed: OverflowError: out of range")
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 1
    monkeypatch.undo()
    await host.pick_up()
    assert (names(host), host.flaws) == (["more", "shout"], [])


async def test_what_hears_of_changes_hears_again_where_it_failed(folder: Path, write: Write) -> None:
    host, heard = PluginHost([folder]), []

    def changed() -> None:
        heard.append(names(host))
        if len(heard) == 1:
            raise KeyError("x")

    host.subscribe(changed)
    write("shout.py")
    await host.pick_up()
    assert len(host.flaws) == 1
    await host.pick_up()
    assert (heard, host.flaws) == ([["shout"], ["shout"]], [])


def test_a_removed_file_is_dropped(folder: Path, write: Write) -> None:
    path = write("shout.py")
    host = PluginHost([folder])
    host.refresh()
    path.unlink()
    assert host.refresh()
    assert (host.registrations(), host.status()) == ((), ())


def test_a_file_that_becomes_writable_by_others_is_dropped(folder: Path, write: Write) -> None:
    path = write("shout.py")
    host = PluginHost([folder])
    host.refresh()
    path.chmod(0o666)
    assert host.refresh()
    assert names(host) == []
    assert "writable by everyone" in host.status()[0].error


def test_a_replaced_file_is_seen_whatever_its_time(folder: Path, write: Write) -> None:
    path = write("c.py", NAMED.format("one"))
    host = PluginHost([folder])
    host.refresh()
    stat = path.stat()
    path.unlink()
    write("c.py", NAMED.format("two"))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert host.refresh()
    assert names(host) == ["two"]


async def test_a_new_file_makes_the_host_stale_at_once(
    folder: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.plugins.host.SCAN_SECONDS", 60.0)
    host = PluginHost([folder])
    await host.pick_up()
    assert not host.stale()
    write("shout.py")
    assert host.stale()
    await host.pick_up()
    assert names(host) == ["shout"]
    assert not host.stale()


async def test_watch_picks_up_and_tells(folder: Path, write: Write) -> None:
    host = PluginHost([folder])
    told = asyncio.Event()
    host.subscribe(told.set)
    watch = asyncio.create_task(host.watch(interval=0.01))
    write("shout.py")
    await asyncio.wait_for(told.wait(), 5)
    watch.cancel()
    assert names(host) == ["shout"]


async def test_a_slow_import_holds_up_nobody_past_the_wait(
    folder: Path, write: Write, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    waits = f"import pathlib, time\nwhile not pathlib.Path({str(gate)!r}).exists():\n    time.sleep(0.01)\n"
    write("slow.py", waits + NAMED.format("slow"))
    host = PluginHost([folder])
    loop = asyncio.get_running_loop()
    await host.pick_up(0.05)
    started = loop.time()
    for _ in range(3):
        await host.pick_up(0.05)  # its time was used up by the first
    assert loop.time() - started < 0.04
    assert names(host) == []
    gate.touch()
    await host.pick_up()
    assert names(host) == ["slow"]


def test_an_import_that_never_ends_is_given_up(
    folder: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.plugins.loader.LOAD_SECONDS", 0.05)
    write("hang.py", "import threading\nthreading.Event().wait(5)")
    write("shout.py")
    host = PluginHost([folder])
    host.refresh()
    assert names(host) == ["shout"]
    assert host.status()[0].error == "loading it did not return within 0.05 s"
