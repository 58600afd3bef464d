"""Plugins from a folder: what is loaded, reported and left alone, and changes that are picked up."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from router.plugins import PluginHost
from router.plugins.loader import HOOKS

Write = Callable[..., Path]


def loaded(folder: Path, allow: str | None = None) -> PluginHost:
    host = PluginHost([folder], allow)
    host.refresh()
    return host


def names(host: PluginHost) -> list[str]:
    return [r.name for r in host.registrations()]


def test_the_ten_line_plugin_is_registered(folder: Path, write: Write) -> None:
    write("shout.py")
    host = loaded(folder)
    (status,) = host.status()
    (classifier,) = status.classifiers
    assert (status.name, status.source, status.error) == ("shout", "file", "")
    assert len(status.digest) == 64
    assert (classifier.name, classifier.priority, classifier.timeout_ms) == ("shout", 100, 20)


def test_no_byte_code_cache_is_left_in_the_folder(
    folder: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    write("shout.py")
    loaded(folder)
    assert [path.name for path in folder.iterdir()] == ["shout.py"]


def test_classifiers_are_ordered_by_priority_then_name(folder: Path, write: Write) -> None:
    for name, priority in (("b", 5), ("a", 5), ("late", 900), ("early", -1)):
        write(
            f"{name}.py",
            f"""
            class C(Classifier):
                name = "{name}"
                def classify_batch(self, requests):
                    return [None] * len(requests)
            @hookimpl
            def register_classifiers(register):
                register(C(), priority={priority})
            """,
        )
    assert names(loaded(folder)) == ["early", "a", "b", "late"]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (
            "import no_such_module_here",
            "ModuleNotFoundError: No module named 'no_such_module_here' (bad.py:4)",
        ),
        ("raise SystemExit(3)", "SystemExit: 3 (bad.py:4)"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("def broken(:", "SyntaxError: invalid syntax (bad.py:4)"),
        ("x = 1", "no hook of lora_router is implemented"),
        ("@hookimpl\ndef register_classifier(register): ...", "did you mean 'register_classifiers'?"),
        ("@hookimpl\ndef register_classifiers(register=None): ...", "argument 'register' has a default"),
        ("@hookimpl\ndef register_classifiers(register, config): ...", "config"),
        ("@hookimpl\ndef register_classifiers(register): 1 / 0", "ZeroDivisionError"),
        (
            "@hookimpl\ndef register_classifiers(register): register(3)",
            "TypeError: register() got a int: subclass router.routing.Classifier (bad.py:5)",
        ),
    ],
)
def test_a_bad_plugin_is_data_and_harms_no_other(
    folder: Path, write: Write, body: str, expected: str
) -> None:
    write("bad.py", body)
    write("shout.py")
    host = loaded(folder)
    bad, good = host.status()
    assert expected in bad.error
    assert not any(ours in bad.error for ours in ("isolation.py", "loader.py", "registration.py"))
    assert not bad.classifiers
    assert (good.error, names(host)) == ("", ["shout"])


def test_a_failed_import_leaves_no_module_behind(folder: Path, write: Write) -> None:
    write("bad.py", "raise RuntimeError")
    before = set(sys.modules)  # other tests load plugins of that name
    loaded(folder)
    assert not [m for m in set(sys.modules) - before if m.startswith("lora_router_plugin_bad")]


def test_an_unknown_hook_beside_a_good_one_is_a_warning(folder: Path, write: Write) -> None:
    path = write("shout.py")
    path.write_text(path.read_text() + "\n@hookimpl\ndef register_adaptors(register): ...\n")
    host = loaded(folder)
    (warning,) = host.status()[0].warnings
    assert warning.startswith("unknown hook 'register_adaptors'")
    assert all(hook in warning for hook in HOOKS)
    assert names(host) == ["shout"]


def test_the_first_of_two_classifiers_of_one_name_wins(folder: Path, write: Write) -> None:
    write("one.py")
    write("two.py")
    host = loaded(folder)
    one, two = host.status()
    assert [r.plugin for r in host.registrations()] == ["one"]
    assert not one.warnings
    assert two.warnings == ("classifier 'shout' is not used: plugin 'one' has one of that name",)


def test_hidden_and_private_files_are_ignored(folder: Path, write: Write) -> None:
    for name in ("_helper.py", ".shout.py", "shout.txt"):
        write(name)
    (folder / "folder.py").mkdir()
    assert loaded(folder).status() == ()


def test_equal_file_names_in_two_folders_are_two_modules(folder: Path, write: Write, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    source = write("shout.py").read_text()
    (other / "shout.py").write_text(source.replace('"shout"', '"shout2"'))
    host = PluginHost([folder, other])
    host.refresh()
    assert names(host) == ["shout", "shout2"]
    assert len({type(r.classifier).__module__ for r in host.registrations()}) == 2


def test_a_missing_folder_is_reported(tmp_path: Path) -> None:
    (status,) = loaded(tmp_path / "nowhere").status()
    assert (status.source, status.error) == ("folder", "No such file or directory")


@pytest.mark.parametrize(
    ("allow", "expected"), [(None, ["shout"]), ("", []), (" shout , x", ["shout"]), ("x", [])]
)
def test_the_allow_list(folder: Path, write: Write, allow: str | None, expected: list[str]) -> None:
    write("shout.py")
    host = loaded(folder, allow)
    assert names(host) == expected
    assert [s.enabled for s in host.status() if s.name == "shout"] == [bool(expected)]


def test_an_allowed_name_that_is_not_there_is_reported(folder: Path) -> None:
    (status,) = loaded(folder, "absent").status()
    assert (status.name, status.error) == ("absent", "no plugin of this name was found")


def test_ctrl_c_while_a_plugin_is_loaded_is_no_fault_of_the_plugin(folder: Path, write: Write) -> None:
    write("slow.py", "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    with pytest.raises(KeyboardInterrupt):
        PluginHost([folder]).refresh()


def test_switched_off_plugins_do_not_run(folder: Path, write: Write, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    write("touch.py", f"open({str(mark)!r}, 'w').close()")
    loaded(folder, "")
    assert not mark.exists()


def test_a_file_overrides_the_built_in_one_of_its_name(
    folder: Path, tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.built_in.PACKAGE", tmp_path / "router")
    below = tmp_path / "router" / "_data" / "plugins"
    below.mkdir(mode=0o755, parents=True)
    write("examples.py")
    text = (folder / "examples.py").read_text()
    (below / "examples.py").write_text(text.replace("priority=100", "priority=1"))
    (below / "multilingual.py").write_text(text.replace('"shout"', '"more"'))
    host = PluginHost([folder, below])
    host.refresh()
    assert {(s.name, s.built_in, s.warnings) for s in host.status()} == {
        ("examples", False, ()),
        ("multilingual", True, ()),
    }
    assert {r.name: r.priority for r in host.registrations()} == {"shout": 100, "more": 100}
    (folder / "examples.py").unlink()
    host.refresh()
    assert {r.name: r.priority for r in host.registrations()} == {"shout": 1, "more": 100}


# -- changes while a server runs

NAMED = """
class C(Classifier):
    name = "{}"
    def classify_batch(self, requests):
        return [None] * len(requests)
@hookimpl
def register_classifiers(register):
    register(C())
"""


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


def test_the_limits_of_shipped_classifiers_catch_calls_that_hang_alone() -> None:
    """Whether a vote counts must not depend on how fast the machine is: the slowest takes some 0.1 s."""
    host = PluginHost([Path(__file__).parents[2] / "plugins"])
    host.refresh()
    assert {one.timeout for one in host.registrations()} == {10.0}
