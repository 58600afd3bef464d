"""The lines of an audit file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any


def entries(path: Path) -> Iterator[dict[str, Any]]:
    """All that can be read, the oldest first."""
    for line in path.read_bytes().splitlines():
        with suppress(ValueError):
            yield json.loads(line)
