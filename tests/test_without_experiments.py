"""Experiments may be taken away: without their folder everything else works, and says what is not there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
SERVE = """
import asyncio, os, sys
import grpc.aio
from router.cli.compose import Composition
from router.cli.main import run
from router.cli.summary import print_summary
from router.client import AsyncClient
from router.config import Settings
from router.engine.fake import FakeEngine
from router.v1 import experiments_pb2 as pb
from router.v1.experiments_pb2_grpc import ExperimentServiceStub

async def main():
    settings = Settings(listen="127.0.0.1:0", metrics_listen="", adapters_dir=(), plugins_dir=(sys.argv[1],))
    composition, ready = Composition(settings, FakeEngine()), asyncio.Event()
    task = asyncio.create_task(composition.run(lambda app: ready.set()))
    await asyncio.wait({task, asyncio.create_task(ready.wait())}, return_when="FIRST_COMPLETED")
    print_summary(composition.app, composition.plugins.status())
    async with AsyncClient(composition.app.address, timeout=20) as client:
        print("answered:", (await client.generate("one two", max_tokens=4)).text)
        try:
            client.experiments
        except ModuleNotFoundError as error:
            print("client:", error)
    async with grpc.aio.insecure_channel(composition.app.address) as channel:
        try:
            await ExperimentServiceStub(channel).ListExperiments(pb.ListExperimentsRequest())
        except grpc.aio.AioRpcError as error:
            print("service:", error.code().name, error.details())
    asked = await asyncio.to_thread(run, ["ask", "--server", composition.app.address, "-n", "4", "one two"])
    print("asked:", asked)
    composition.app.request_stop()
    await task
    print("imported:", [name for name in sys.modules if name.startswith("router.experiments")])

asyncio.run(main())
sys.stdout.flush()
os._exit(0)  # as the command does: a thread of a classifier may still be inside a C++ library
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package `router` without experiments."""
    folder = tmp_path_factory.mktemp("without")
    left_out = shutil.ignore_patterns("experiments", "__pycache__")
    shutil.copytree(ROOT / "router", folder / "router", ignore=left_out)
    return folder


def done(package: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(package), "XDG_STATE_HOME": str(package / "state")}
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=package, env=environment, capture_output=True, text=True, check=False, timeout=100
    )


def test_the_command_line_has_all_other_commands(package: Path) -> None:
    found = done(package, "-m", "router.cli", "--help")
    assert found.returncode == 0, found.stderr
    assert "serve" in found.stdout
    assert "experiments" not in found.stdout


def test_a_server_answers_and_says_what_is_not_there(package: Path) -> None:
    found = done(package, "-c", SERVE, str(ROOT / "plugins"))
    assert found.returncode == 0, found.stderr
    told = dict(line.partition(": ")[::2] for line in found.stdout.splitlines() if ": " in line)
    missing = "experiments are not installed: the folder router/experiments is not there"
    assert told["answered"].split()
    assert told["client"] == missing
    assert told["service"].startswith("UNIMPLEMENTED ")
    assert told["asked"] == "0"
    assert told["imported"] == "[]"
    assert re.search(r"^ *experiments +off$", found.stdout, re.MULTILINE)
    assert "is broken" not in found.stdout  # no plugin of ours needs experiments


def test_a_setting_of_a_part_that_is_not_there_ends_the_start(package: Path) -> None:
    found = done(
        package, "-m", "router.cli", "serve", "--listen=127.0.0.1:0", "--set=experiments.holdout=0.1"
    )
    assert found.returncode == 2
    assert "[experiments] (from flag) is no setting, and no plugin is called so" in found.stderr


def test_names_of_experiments_are_not_there(package: Path) -> None:
    found = done(package, "-c", "from router.client import Client; from router.client import Spec")
    assert "ImportError: cannot import name 'Spec'" in found.stderr
