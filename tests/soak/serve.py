"""`lora-router serve` whose pools start whole, on the fake engine unless told so: [OPTIONS] serve FLAGS...

Pools start a thread whenever none is idle, so that their number creeps up to its bound for hours: nobody
could tell that from a leak. On the fake engine everything but the base's files and the engine is what an
operator starts.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from router.cli import compose, engines
from router.cli.main import main
from router.config import Settings
from router.engine.base import Engine, Job
from router.engine.fake import FakeEngine, FakeGeneration
from tests.registry.tiny import SITES, VOCAB
from tests.soak import leaks
from tests.soak.checks import telling

STEP_SECONDS = 0.002


class Telling(FakeEngine):
    """Answers say who was asked by whom; `leak` runs at each request.

    `mixed_up`: one of so many answers is that of the request before; 0: none.
    """

    def __init__(self, leak: leaks.Leak, step_seconds: float, joint: bool, mixed_up: int) -> None:
        super().__init__(step_seconds=step_seconds)
        self._info = dataclasses.replace(
            self._info, name="org/tiny-llama", sites=SITES, vocab_size=VOCAB, context_length=8192
        )
        self._submitted = itertools.count(1)
        self._leak, self._joint, self._mixed_up = leak, joint, mixed_up

    def submit(self, job: Job) -> FakeGeneration:
        """As every engine does."""
        self._leak(job)
        told = job
        if self._mixed_up and self.jobs and next(self._submitted) % self._mixed_up == 0:
            told = self.jobs[-1]
        row = super().submit(dataclasses.replace(job, tokens=telling(told, self._joint)))
        self.jobs[-1] = job
        return row


def start_pools_whole() -> None:
    """From now on a pool of threads starts all of them when it gets its first work."""
    one_more = ThreadPoolExecutor._adjust_thread_count  # type: ignore[attr-defined]

    def all_of_them(pool: Any) -> None:
        while len(pool._threads) < pool._max_workers:
            while pool._idle_semaphore.acquire(timeout=0):  # an idle one would do: not here
                pass
            one_more(pool)

    ThreadPoolExecutor._adjust_thread_count = all_of_them  # type: ignore[attr-defined]


def begin() -> None:
    """Serve; where asked for, with the fake engine where the real one would be."""
    parser = argparse.ArgumentParser(description=__doc__, add_help=False, allow_abbrev=False)
    parser.add_argument("--engine", choices=("fake", "real"), default="fake")
    parser.add_argument("--leak", choices=tuple(leaks.LEAKS), default="")
    parser.add_argument("--step", type=float, default=STEP_SECONDS)
    parser.add_argument("--joint", action="store_true", help="answers of two pieces")
    parser.add_argument("--mixed-up", type=int, default=0, help="every so many answers one is another's")
    options, sys.argv[1:] = parser.parse_known_args()

    start_pools_whole()
    if options.engine == "fake":
        replace_engine(options)
    main()


def replace_engine(options: argparse.Namespace) -> None:
    """The fake one in place of the base."""

    def make_engine(settings: Settings) -> Engine:
        return Telling(leaks.make(options.leak), options.step, options.joint, options.mixed_up)

    engines.make_engine = make_engine
    engines.resolve_model = lambda name: None  # type: ignore[assignment,return-value]
    compose.Composition = leaks.Held  # type: ignore[misc]


if __name__ == "__main__":
    begin()
