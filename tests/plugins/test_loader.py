"""What may be loaded: no code that others can write, and no installed package that was not named."""

from __future__ import annotations

import os
import pwd
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest

from router.plugins import PluginHost
from router.plugins.host import PluginStatus
from router.plugins.loader import distrust


def fake(mode: int, uid: int, gid: int) -> os.stat_result:
    return os.stat_result((stat.S_IFREG | mode, 1, 1, 1, uid, gid, 1, 0, 0, 0))


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="changes owners, or differs for ordinary users")


@pytest.mark.parametrize(
    ("mode", "reason"), [(0o777, "writable by everyone"), (0o775, "writable by its group"), (0o755, "")]
)
@needs_root
def test_the_folder_and_the_file(folder: Path, write: Callable[..., Path], mode: int, reason: str) -> None:
    path = write("shout.py")
    folder.chmod(mode)
    host = PluginHost([folder])
    host.refresh()
    assert (reason in host.status()[0].error, bool(host.registrations())) == (True, not reason)
    folder.chmod(0o755)
    path.chmod(mode)
    host.refresh()
    assert (reason in host.status()[0].error, bool(host.registrations())) == (True, not reason)


def test_another_users_file() -> None:
    assert "belongs to another user (uid 4242)" in distrust(fake(0o644, 4242, 4242), "file")
    assert distrust(fake(0o644, 0, 0), "file") == ""


@needs_root
def test_who_can_write_the_router_itself_is_no_stranger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkout of another user, run by root in a container; a shared one with umask 002."""
    monkeypatch.setattr("router.plugins.loader.PACKAGE", tmp_path)
    os.chown(tmp_path, 4242, 4343)
    tmp_path.chmod(0o775)
    assert distrust(fake(0o664, 4242, 4343), "file") == ""
    assert "its group" in distrust(fake(0o664, 4242, 50), "file")
    assert "everyone" in distrust(fake(0o666, 4242, 4343), "file")
    tmp_path.chmod(0o755)
    assert "its group" in distrust(fake(0o664, 4242, 4343), "file")
    assert "another user" in distrust(fake(0o644, 4444, 4343), "file")


def test_a_users_own_private_group_may_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """Umask 002 with one group for each user is the default of some distributions."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: SimpleNamespace(pw_gid=1000, pw_name="ann"))
    members: list[str] = []
    monkeypatch.setattr(
        "grp.getgrgid", lambda gid: SimpleNamespace(gr_name="ann" if gid == 1000 else "staff", gr_mem=members)
    )
    assert distrust(fake(0o664, 1000, 1000), "file") == ""
    assert "its group" in distrust(fake(0o664, 1000, 50), "file")
    members.append("bob")
    assert "its group" in distrust(fake(0o664, 1000, 1000), "file")


Install = Callable[[str, Mapping[str, str]], Path]


@pytest.fixture
def install(tmp_path: Path, shout: str, monkeypatch: pytest.MonkeyPatch) -> Install:
    """`install(package, {name: module})`: each module is the documentation's plugin and leaves a mark."""

    def install(package: str, entries: Mapping[str, str]) -> Path:
        site = tmp_path / package
        info = site / f"{package}-1.4.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.4\n")
        lines = "".join(f"{name} = {module}\n" for name, module in entries.items())
        (info / "entry_points.txt").write_text(f"[lora_router]\n{lines}")
        for module in entries.values():
            mark = f"import pathlib\npathlib.Path({str(site / module)!r}).touch()\n"
            if not module.startswith("no_"):
                (site / f"{module}.py").write_text(mark + shout)
        monkeypatch.syspath_prepend(site)
        return site

    return install


def loaded(load_plugins: str | None = None, installed_plugins: str = "") -> PluginHost:
    host = PluginHost([], load_plugins, installed_plugins)
    host.refresh()
    return host


def names(host: PluginHost) -> list[str]:
    return [r.name for r in host.registrations()]


def told(host: PluginHost) -> dict[str, PluginStatus]:
    return {status.name: status for status in host.status()}


@pytest.mark.parametrize("load_plugins", [None, "", "shout", "shouting:shout"])
def test_what_nobody_named_is_not_even_imported(install: Install, load_plugins: str | None) -> None:
    """A name in `load_plugins` means a file: else a package could take the place of `keywords`."""
    site = install("shouting", {"shout": "plugin_unnamed"})
    host = loaded(load_plugins)
    assert names(host) == []
    assert not (site / "plugin_unnamed").exists()
    found = host.status()[0]
    assert (found.name, found.source, found.package) == ("shout", "entry-point", "shouting")
    assert (found.enabled, found.error) == (False, "")


def test_one_that_is_named_is_loaded_with_its_version(install: Install) -> None:
    site = install("shouting", {"shout": "plugin_named", "other": "plugin_other", "gone": "no_such_module"})
    host = loaded("", " shout , gone")
    assert names(host) == ["shout"]
    assert not (site / "plugin_other").exists()
    found = told(host)
    assert (found["shout"].version, found["shout"].path) == ("1.4", "plugin_named")
    assert "ModuleNotFoundError" in found["gone"].error
    assert not found["other"].enabled


@pytest.mark.parametrize("said", ["shouting_aloud:shout", "Shouting-Aloud:shout", "shouting.aloud : shout"])
def test_a_package_is_named_as_registries_compare_names(install: Install, said: str) -> None:
    install("shouting_aloud", {"shout": "plugin_of_package"})
    assert names(loaded(installed_plugins=said)) == ["shout"]


def test_of_two_packages_with_one_name_neither_is_loaded_until_one_is_chosen(install: Install) -> None:
    good, bad = install("good", {"shout": "plugin_good"}), install("bad", {"shout": "plugin_bad"})
    host = loaded(installed_plugins="shout")
    assert names(host) == []
    assert not (good / "plugin_good").exists()
    assert not (bad / "plugin_bad").exists()
    errors = [status.error for status in host.status()]
    assert errors == ["several packages have it, so none is loaded: name one of bad:shout, good:shout"] * 2
    host = loaded(installed_plugins="good:shout")
    assert names(host) == ["shout"]
    assert not (bad / "plugin_bad").exists()
    assert [(s.package, s.enabled, s.error) for s in host.status()] == [
        ("bad", False, ""),
        ("good", True, ""),
    ]


def test_a_name_that_no_package_has_is_told(install: Install) -> None:
    install("shouting", {"shout": "plugin_there"})
    host = loaded(installed_plugins="shuot,else:shout")
    absent = [s for s in host.status() if s.source == "installed"]
    assert [(s.name, s.error, s.enabled) for s in absent] == [
        ("else:shout", "no installed package has it", False),
        ("shuot", "no installed package has it", False),
    ]


def test_an_optional_classifier_is_on_where_its_plugin_is_named(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = install("shouting", {"shout": "plugin_optional"})
    source = (site / "plugin_optional.py").read_text()
    (site / "plugin_optional.py").write_text(source.replace("timeout_ms=20", "timeout_ms=20, optional=True"))
    assert names(loaded(installed_plugins="shout")) == ["shout"]
