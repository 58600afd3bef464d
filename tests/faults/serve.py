"""`lora-router serve` as it is, but for the base: a fake engine. `python -m tests.faults.serve serve ...`.

What is slow, and what the clock says, comes from the environment: FAULT_STEP, FAULT_START and FAULT_LOAD are
seconds of a step, of the base's start and of an adapter's load; FAULT_CLOCK names a file that holds how many
seconds the wall clock is ahead.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path


def shifted(real: Callable[[], float], file: Path) -> Callable[[], float]:
    """The wall clock, as far ahead as the file says now."""
    return lambda: real() + float(file.read_text())


def seconds(name: str) -> float:
    return float(os.environ.get(f"FAULT_{name}", 0))


def main() -> int:
    if clock := os.environ.get("FAULT_CLOCK"):  # before anything of ours keeps `time.time`
        time.time = shifted(time.time, Path(clock))
    from router.cli import compose, main
    from router.engine.fake import FakeEngine
    from tests.registry.tiny import BASE

    engine = FakeEngine(
        step_seconds=seconds("STEP"), start_seconds=seconds("START"), load_seconds=seconds("LOAD")
    )
    engine._info = replace(BASE, context_length=2048)
    compose.make_engine = lambda settings: engine  # type: ignore[assignment,return-value]
    compose.resolve_model = lambda name: None  # type: ignore[assignment,return-value]
    return main.run()


if __name__ == "__main__":
    sys.exit(main())
