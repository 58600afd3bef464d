"""The lines of an audit file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from router.access.audit import last_entries


def entries(path: Path) -> Iterator[dict[str, Any]]:
    """All that can be read, the oldest first."""
    return iter(last_entries(path, path.stat().st_size))
