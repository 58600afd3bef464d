"""`lora-router serve` on a tiny base, where something hangs once it is ready: FOLDER WHAT DRAIN_SECONDS.

WHAT is `step`, or `flush` for the end of experiments.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path

from router import config
from router.cli import compose, engines
from router.config import Settings
from router.engine.base import Engine
from router.engine.fake import FakeEngine
from router.extensions.experiments.recorder import Writer


def real_engine() -> Callable[[Settings], Engine]:
    """Makes one on a tiny base."""
    from router.engine.loader import LoadedModel
    from router.engine.torch_engine import TorchEngine
    from tests.engine import tiny
    from tests.engine.hanging import hanging

    class Real(TorchEngine):
        def start(self) -> None:
            super().start()
            hanging(self).begin()

    loaded = LoadedModel(tiny.model("llama"), tiny.tokenizer(), "llama")
    return lambda settings: Real(settings, loaded)


def main(folder: Path, what: str, drain: float) -> int:
    if what == "flush":
        Writer.end = lambda self, seconds: threading.Event().wait()  # type: ignore[method-assign]
        engines.make_engine = lambda settings: FakeEngine()  # type: ignore[assignment,return-value]
    else:
        engines.make_engine = real_engine()
    engines.resolve_model = lambda name: None  # type: ignore[assignment,return-value]
    config.FLUSH_SECONDS = 0.5
    settings = Settings(
        listen="127.0.0.1:0",
        metrics_listen="",
        adapters_dir=(folder / "adapters",),
        plugins_dir=(folder / "plugins",),
        database=f"sqlite:///{folder}/experiments.db",
        dtype="float32",
        device="cpu",
        native=False,
        cache_tokens=2048,
        drain_seconds=drain,
        lame_duck_seconds=0.2,
    )
    return compose.serve_until_stopped(settings)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])))
