"""How faults of plugins are named: type and place, never the text, which may hold a user's words."""

from __future__ import annotations

import traceback
from pathlib import Path


def place(error: BaseException) -> str:
    """For example `KeyError at shout.py:12`."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{where}"
