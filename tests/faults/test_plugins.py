"""A classifier that hangs, exits, starts processes or takes memory; others are served meanwhile."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from tests.faults.served import Served, ask, folders, served

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
BAD = """
import ctypes
import multiprocessing
import os
import subprocess
import sys
import time

from router import hookimpl
from router.routing import Classifier, Scores


def hang():
    time.sleep(600)


def leave():
    sys.exit(3)


def run():
    subprocess.run([sys.executable, "-c", "pass"], check=True)


def spawn():
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=os.getpid)
    process.start()
    process.join()


def server():
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=os.getpid)
    process.start()
    process.join()


def hold():
    ctypes.PyDLL(None).sleep(4)


def greedy():
    bytearray(1 << 60)


def end():
    os._exit(9)


DEEDS = {f.__name__: f for f in (hang, hold, leave, run, spawn, server, greedy, end)}


class Bad(Classifier):
    name = "bad"

    def classify_batch(self, requests):
        for request in requests:
            deed = DEEDS.get(request.text.partition(" ")[0])
            if deed is not None:
                deed()
        return [Scores({"legal": 1.0}) if r.text in DEEDS else None for r in requests]


@hookimpl
def register_classifiers(register):
    register(Bad(), timeout_ms=TIMEOUT)
"""


async def routed(server: Served, text: str) -> str:
    return str((await server.inference.Generate(ask(text), timeout=60)).decision.adapter)


async def neighbours(server: Served) -> int:
    """Others are answered by the adapter that is theirs; how many were until this was cancelled."""
    count = 0
    try:
        while True:
            assert "medical" in await routed(server, "a medical question")
            count += 1
    except asyncio.CancelledError:
        return count


async def test_classifiers_that_do_what_they_should_not(tmp_path: Path) -> None:
    root = folders(tmp_path / "server")
    (root / "plugins" / "bad.py").write_text(BAD.replace("TIMEOUT", "15000"))
    async with served(root) as server:
        others = asyncio.ensure_future(neighbours(server))
        for deed in ("run", "spawn", "server"):
            assert "legal" in await routed(server, deed), server.log[-2000:]
        for deed in ("leave", "greedy"):
            assert await routed(server, deed) == ""
        others.cancel()
        assert await others >= 3  # a vote is waited for, as long as its plugin asked for
        assert server.exit_code is None
        assert (await server.page("/readyz"))[0] == 200
        held = asyncio.ensure_future(routed(server, "hold"))
        await asyncio.sleep(0.7)
        assert (await server.page("/healthz", 1.0))[0] == 0  # nobody else gets Python's lock
        await server.until_page("/healthz", 200)
        assert "legal" in await held


async def test_one_that_hangs_costs_its_vote(tmp_path: Path) -> None:
    root = folders(tmp_path / "server")
    (root / "plugins" / "bad.py").write_text(BAD.replace("TIMEOUT", "100"))
    async with served(root) as server:
        begun = time.monotonic()
        for _ in range(8):
            assert await routed(server, "hang") == ""
            assert "medical" in await routed(server, "a medical question")
        assert time.monotonic() - begun < 60  # of 600 each
        hung = 'lora_router_classifier_verdicts_total{classifier="bad",verdict="timeout"}'
        assert await server.metric(hung) >= 1
        assert (await server.page("/healthz"))[0] == 200
        assert await server.end() == 0  # whatever its threads do


async def test_one_that_ends_the_process_is_a_new_start(tmp_path: Path) -> None:
    """Plugins are code of the server; nothing holds `os._exit` up. Its supervisor starts it again."""
    root = folders(tmp_path / "server")
    (root / "plugins" / "bad.py").write_text(BAD.replace("TIMEOUT", "1000"))
    async with served(root) as server:
        await server.choose("1.0.0")
        call = asyncio.ensure_future(routed(server, "end"))
        assert await asyncio.wait_for(server.process.wait(), 30) == 9
        await asyncio.gather(call, return_exceptions=True)
    async with served(root) as server:
        assert (await server.default()).endswith("1.0.0")
        assert "medical" in await routed(server, "a medical question")
