"""Settings of a server for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from router.config import Settings
from router.plugins.tables import read_tables


def settings_of(**said: Any) -> Settings:
    """With those values; NAME.KEY is a plugin's. No file is read, and of the environment no tables."""
    of_plugins = {name: value for name, value in said.items() if "." in name}
    own = {name: value for name, value in said.items() if "." not in name}
    return Settings(**own).with_tables(read_tables(Path(), {}, of_plugins))
