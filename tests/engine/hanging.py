"""An engine whose steps can be made to hang."""

from __future__ import annotations

import threading
from typing import Any

from router.engine.torch_engine import TorchEngine


class Hang:
    """From `begin` to `let_go` anyone who calls `wait` waits. `hangs` is set while somebody does."""

    def __init__(self) -> None:
        self.hangs = threading.Event()
        self._go = threading.Event()
        self._go.set()

    def begin(self) -> None:
        self._go.clear()

    def let_go(self) -> None:
        self._go.set()

    def wait(self) -> None:
        if not self._go.is_set():
            self.hangs.set()
            self._go.wait()
            self.hangs.clear()


def hanging(engine: TorchEngine) -> Hang:
    """Makes the steps of a started engine wait for what it returns."""
    assert engine._loop is not None
    hang, runner = Hang(), engine._loop._runner
    run = runner.run

    def held(chunks: Any, pooling: bool) -> Any:
        hang.wait()
        return run(chunks, pooling=pooling)

    runner.run = held  # type: ignore[method-assign]
    return hang
