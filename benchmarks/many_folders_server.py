"""`lora-router serve` on a fake engine that keeps watch on its own event loop, for `benchmarks.many_folders`.

Every 0.2 s a line of JSON goes to the file that WATCH_LOOP names: how late the loop came back at worst (wall
clock, so what other processes take counts), the longest that one callback kept the processor (thread time,
so it does not), and the longest collection of garbage. With WATCH_STACKS there, the stack of a callback that
runs for long is in the line.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import threading
import time
import traceback
from asyncio.events import Handle
from dataclasses import replace
from pathlib import Path

from router.cli import compose, engines, main
from router.engine.fake import FakeEngine
from tests.registry.tiny import BASE

LINE_SECONDS, STEP_SECONDS = 0.2, 0.005
LONG_SECONDS = 0.02  # of a callback whose stack is kept
LAYERS, HIDDEN = 30, 576
SHAPES = {"q_proj": (HIDDEN, HIDDEN), "k_proj": (192, HIDDEN), "v_proj": (192, HIDDEN)}
SITES = {f"model.layers.{i}.self_attn.{name}": shape for i in range(LAYERS) for name, shape in SHAPES.items()}


class Watch:
    """Measures the loop that it is started on, by wrapping how asyncio runs a callback."""

    def __init__(self, file: Path, stacks: bool) -> None:
        self._file, self._stacks = file, stacks
        self._late = self._longest = self._garbage = 0.0
        self._what = self._stack = ""
        self._began = self._collecting = 0.0

    def start(self) -> None:
        """Begin to measure; on the event loop."""
        run = Handle._run  # type: ignore[attr-defined]

        def timed(handle: Handle) -> None:
            began = time.thread_time()
            self._began = time.monotonic()
            run(handle)
            self._began = 0.0
            took = time.thread_time() - began
            if took > self._longest:
                self._longest, self._what = took, repr(handle)[:300] if took > LONG_SECONDS else ""

        Handle._run = timed  # type: ignore[attr-defined]
        gc.callbacks.append(self._collected)
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._look()), loop.create_task(self._write())]
        if self._stacks:
            threading.Thread(target=self._sample, args=(threading.get_ident(),), daemon=True).start()

    def _collected(self, phase: str, _: dict[str, int]) -> None:
        now = time.thread_time()
        if phase == "stop":
            self._garbage = max(self._garbage, now - self._collecting)
        self._collecting = now

    async def _look(self) -> None:
        while True:
            due = time.monotonic() + STEP_SECONDS
            await asyncio.sleep(STEP_SECONDS)
            self._late = max(self._late, time.monotonic() - due)

    async def _write(self) -> None:
        with self._file.open("a", buffering=1) as file:
            while True:
                await asyncio.sleep(LINE_SECONDS)
                line = {"time": time.time(), "late": self._late, "callback": self._longest}
                line["garbage"] = self._garbage
                line |= {"what": self._what, "stack": self._stack} if self._what else {}
                file.write(json.dumps(line) + "\n")
                self._late = self._longest = self._garbage = 0.0
                self._what = self._stack = ""

    def _sample(self, thread: int) -> None:
        while True:
            time.sleep(STEP_SECONDS)
            began = self._began
            if began and time.monotonic() - began > LONG_SECONDS:
                frame = sys._current_frames()[thread]
                self._stack = "".join(traceback.format_stack(frame)[-6:])


def serve() -> int:
    """The command line, with another engine."""
    engine = FakeEngine()
    engine._info = replace(BASE, context_length=2048, sites=SITES)
    engines.make_engine = lambda settings: engine  # type: ignore[assignment,return-value]
    engines.resolve_model = lambda name: None  # type: ignore[assignment,return-value]
    watch = Watch(Path(os.environ["WATCH_LOOP"]), "WATCH_STACKS" in os.environ)
    start = compose.Composition._start

    async def watched(composition: compose.Composition) -> None:
        watch.start()
        await start(composition)

    compose.Composition._start = watched  # type: ignore[method-assign]
    return main.run()


if __name__ == "__main__":
    sys.exit(serve())
