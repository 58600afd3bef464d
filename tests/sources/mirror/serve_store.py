"""`lora-router serve` on the fake engine, with drivers from elsewhere: SITE FLAGS…"""

from __future__ import annotations

import dataclasses
import sys

from router.cli import engines
from router.config import Settings
from router.engine.fake import FakeEngine
from tests.cli.tiny import MODULES


def engine(settings: Settings) -> FakeEngine:
    """Its steps take a while, so that answers are on their way when adapters change."""
    made = FakeEngine(step_seconds=0.05)
    made._info = dataclasses.replace(made._info, sites=MODULES, vocab_size=32)
    return made


if __name__ == "__main__":
    sys.path.append(sys.argv.pop(1))
    engines.make_engine = engine
    engines.resolve_model = lambda name: None  # type: ignore[assignment,return-value]
    from router.cli.main import main

    main()
