"""Clients of the Open Inference Protocol, unchanged, each in an environment of its own."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest

from router.engine.fake import FakeEngine
from tests.server.helpers import Start

pytestmark = [pytest.mark.long, pytest.mark.interop, pytest.mark.timeout(900)]


def environment(folder: Path, package: str) -> Path:
    """The interpreter of a new environment with that package."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", package], check=True)
    return python


@pytest.mark.parametrize(
    ("package", "script"),
    [("tritonclient[grpc]", "triton_client.py"), ("kserve", "kserve_client.py")],
)
async def test_a_client_unchanged(start_server: Start, tmp_path: Path, package: str, script: str) -> None:
    python = await asyncio.to_thread(environment, tmp_path, package)
    server = await start_server(
        FakeEngine(step_seconds=0.002, context_length=8192), **{"kserve.enabled": True}
    )
    command = (python, Path(__file__).with_name(script), server.address)
    child = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE, cwd=tmp_path)
    out, err = await child.communicate()
    assert (child.returncode, out.decode().splitlines()[-1:]) == (0, ["OK"]), err.decode()
