"""`lora-router replica ARGUMENTS` whose fake engine takes some time for a step."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from router.cli import main, replica
from router.config import Settings

STEP = {"step_seconds": 0.01}


def run(arguments: list[str]) -> int:
    """Run the command; returns its exit code."""
    real = replica.run

    def slowly(settings: Settings, *, child: bool, fake: Mapping[str, Any]) -> int:
        return real(settings, child=child, fake={**STEP, **fake})

    replica.run = slowly  # type: ignore[assignment]
    return main.run(["replica", "--engine", "fake", *arguments])


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
