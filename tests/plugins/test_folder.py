"""Code that others can write is refused, with the reason."""

from __future__ import annotations

import os
import pwd
import stat
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from router.plugins import PluginHost
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
