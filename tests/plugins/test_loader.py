"""Installed plugins, through a real distribution folder on the path."""

from __future__ import annotations

from pathlib import Path

import pytest

from router.plugins import PluginHost


@pytest.fixture
def installed(tmp_path: Path, shout: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    site = tmp_path / "site"
    info = site / "shouting-1.4.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shouting\nVersion: 1.4\n")
    (info / "entry_points.txt").write_text("[lora_router]\nshout = shouting_plugin\ngone = no_such_module\n")
    (site / "shouting_plugin.py").write_text(shout)
    monkeypatch.syspath_prepend(site)
    return site


def test_installed_plugins_are_found_with_their_version(installed: Path) -> None:
    host = PluginHost([])
    host.refresh()
    gone, shout = host.status()
    assert (shout.source, shout.version, shout.path) == ("entry-point", "1.4", "shouting_plugin")
    assert [r.name for r in host.registrations()] == ["shout"]
    assert "ModuleNotFoundError" in gone.error


def test_the_allow_list_holds_for_them_too(installed: Path) -> None:
    host = PluginHost([], "")
    host.refresh()
    assert host.registrations() == ()
    assert [s.enabled for s in host.status()] == [False, False]
