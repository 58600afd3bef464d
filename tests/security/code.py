"""The server's own code, as it is written."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cache
from pathlib import Path

ROUTER = Path(__file__).parents[2] / "router"


@cache
def trees() -> Mapping[str, ast.Module]:
    """Every file of `router/` but what is generated, parsed; by path below `router/`."""
    return {
        str(path.relative_to(ROUTER)): ast.parse(path.read_text(encoding="utf-8"))
        for path in sorted(ROUTER.rglob("*.py"))
        if path.parent.name != "v1"
    }
