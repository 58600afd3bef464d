"""`lora-router serve` as it is, but for the base: a fake engine. `python -m tests.faults.serve serve ...`.

What is slow comes from the environment: FAULT_STEP, FAULT_START and FAULT_LOAD are seconds of a step, of the
base's start and of an adapter's load.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace

from router.cli import engines, main
from router.engine.fake import FakeEngine
from tests.registry.tiny import BASE


def seconds(name: str) -> float:
    return float(os.environ.get(f"FAULT_{name}", 0))


def serve() -> int:
    engine = FakeEngine(
        step_seconds=seconds("STEP"), start_seconds=seconds("START"), load_seconds=seconds("LOAD")
    )
    engine._info = replace(BASE, context_length=2048)
    engines.make_engine = lambda settings: engine  # type: ignore[assignment,return-value]
    engines.resolve_model = lambda name: None  # type: ignore[assignment,return-value]
    return main.run()


if __name__ == "__main__":
    sys.exit(serve())
