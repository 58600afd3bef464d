"""The user's folders are those of platformdirs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from platformdirs.macos import MacOS
from platformdirs.unix import Unix
from platformdirs.windows import Windows

from router.folders import cache_folder, state_folder

SYSTEMS = {"linux": Unix, "darwin": MacOS, "win32": Windows}


@pytest.mark.parametrize("xdg", ["", "relative", "/absolute"])
@pytest.mark.parametrize("system", SYSTEMS)
def test_the_folders_are_those_of_platformdirs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, system: str, xdg: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    for variable in ("XDG_CACHE_HOME", "XDG_STATE_HOME"):
        monkeypatch.setenv(variable, xdg)
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr("platformdirs.windows.get_win_folder", lambda name: str(tmp_path / "local"))
    dirs = SYSTEMS[system]
    assert str(cache_folder()) == dirs("lora-router").user_cache_dir
    assert str(state_folder()) == dirs("lora-router", appauthor=False).user_state_dir
