"""`python -m benchmarks.observers`: what the hooks `on_decision` and `on_answer` cost a request.

A deterministic loop does for each request what the server does: it asks whether a plugin rewrites, observes
the decision, and reads an answer, with a watcher if there is one. The measure is processor time, of the event
loop's thread and of the whole process with the observer's thread, less that of the same loop without hooks.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import report
from router.engine.base import Delta, Finished, batches
from router.engine.output import EventStream
from router.plugins import PluginHost
from router.plugins.runtime import Hooks
from router.server.watching import watching
from router.types import AdapterRef, Decision, FinishReason, Reason, Request, Turn, Usage

NONE, IDLE, ONE = "without hooks", "no plugin observes", "one observer"
TOKENS = 64  # of an answer
REQUESTS = 500  # of a round: fewer than the records that may wait for an observer
AIM = 20.0  # microseconds a request
PLUGIN = """
from router import hookimpl

@hookimpl
def on_decision(record):
    len(record.text)

@hookimpl
def on_answer(record):
    len(record.text)
"""
REQUEST = Request("r", turns=(Turn("user", "Translate to French: a small fast editor for config files"),))
DECISION = Decision(AdapterRef("translation", "1"), Reason.CLASSIFIED, confidence=0.9, classifier="keywords")
ANSWER = (*[Delta("word ")] * TOKENS, Finished(FinishReason.STOP, Usage(20, 0, TOKENS, 0.01, 0.02, 0.5)))


async def request(hooks: Hooks | None) -> None:
    """What the pipeline does with hooks for one request."""
    watchers = []
    if hooks is not None:
        if hooks.rewrites:
            await hooks.rewrite(REQUEST)
        hooks.decided(REQUEST, DECISION)
        if (watcher := hooks.watcher(REQUEST, DECISION)) is not None:
            watchers.append(watcher)
    stream = EventStream(lambda _: None, lambda _: None)
    for event in ANSWER:
        stream.put(event)
    with watching(watchers, stream, lambda: "") as generation:
        async with aclosing(batches(generation, 1)) as each:
            async for _ in each:
                pass


@asynccontextmanager
async def started(way: str) -> AsyncIterator[Hooks | None]:
    """The hooks of a server that has such plugins."""
    if way == NONE:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        if way == ONE:
            (Path(folder) / "observer.py").write_text(PLUGIN)
        hooks = Hooks(PluginHost([Path(folder)], load_plugins=None if way == ONE else ""))
        async with asyncio.timeout(30):
            while hooks.host.stale():
                await hooks.host.pick_up(1.0)
        await hooks._follow()
        if bool(hooks.watcher(REQUEST, DECISION)) != (way == ONE):
            raise RuntimeError("the observer was not loaded")
        yield hooks
        await hooks.shutdown()


def observed(hooks: Hooks | None) -> Callable[[], int]:
    """How many records the observers have had."""
    observers = [one.observer for one in hooks.running()] if hooks is not None else []
    return lambda: sum(one.observed for one in observers if one is not None)


async def round_of(way: str) -> tuple[float, float]:
    """Microseconds a request: of this thread, of the process."""
    async with started(way) as hooks:
        for _ in range(50):
            await request(hooks)
        had = observed(hooks)
        until = had() + 2 * REQUESTS if way == ONE else 0
        await asyncio.sleep(0.05)
        gc.collect()
        own, all_ = time.thread_time(), time.process_time()
        for _ in range(REQUESTS):
            await request(hooks)
        own = time.thread_time() - own
        while had() < until:
            time.sleep(0.001)  # noqa: ASYNC251 - nothing else is to run
        all_ = time.process_time() - all_
    return 1e6 * own / REQUESTS, 1e6 * all_ / REQUESTS


async def main(arguments: argparse.Namespace) -> None:
    """All ways in turn, `rounds` times."""
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in (NONE, IDLE, ONE)}
    for _ in range(arguments.rounds):
        for way, rounds in found.items():
            rounds.append(await round_of(way))
    rows: list[dict[str, Any]] = []
    for way, rounds in found.items():
        own, all_ = (
            median(mine[i] - none[i] for mine, none in zip(rounds, found[NONE], strict=True)) for i in (0, 1)
        )
        rows.append({"hooks": way, "event loop, us a request": own, "all threads, us a request": all_})
    print(report.table(rows))
    if arguments.write:
        workload = (
            f"{REQUESTS} requests with answers of {TOKENS} tokens that are there already; medians of the "
            f"differences in {arguments.rounds} interleaved rounds; the plugin has both hooks"
        )
        notes = [f"aim: at most {AIM:g} us a request for one observer, nothing without one"]
        print(report.write("observers", workload, rows, notes))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--write", action="store_true", help="keep the result in benchmarks/results")
    asyncio.run(main(parser.parse_args()))
