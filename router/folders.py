"""The user's folders for lora-router: one for what can be made again, one for state.

They are where platformdirs has them.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

NAME = "lora-router"


def cache_folder() -> Path:
    """For models and native operations; $XDG_CACHE_HOME/lora-router where that is an absolute path."""
    if sys.platform == "win32":
        return _local_appdata() / NAME / NAME / "Cache"
    return _xdg("XDG_CACHE_HOME", "Library/Caches" if sys.platform == "darwin" else ".cache")


def state_folder() -> Path:
    """For databases and logs; $XDG_STATE_HOME/lora-router where that is an absolute path."""
    if sys.platform == "win32":
        return _local_appdata() / NAME
    mac = sys.platform == "darwin"
    return _xdg("XDG_STATE_HOME", "Library/Application Support" if mac else ".local/state")


def _xdg(variable: str, default: str) -> Path:
    """The specification has a relative path ignored."""
    set_to = os.environ.get(variable, "")
    return Path(set_to if os.path.isabs(set_to) else Path.home() / default, NAME)


def _local_appdata() -> Path:
    return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
