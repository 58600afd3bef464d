"""Every example runs against a server."""

import asyncio
import os
import shutil
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


async def output(*command: str, cwd: Path = EXAMPLES) -> str:
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    child = await asyncio.create_subprocess_exec(
        *command,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=os.environ | {"PATH": tools},
        cwd=cwd,
    )
    out, _ = await child.communicate()
    assert child.returncode == 0, out.decode()
    return out.decode()


@pytest.mark.slow
async def test_the_python_client(server):
    out = await output(sys.executable, "python_client.py", server.address)
    assert "medical@1.0.0  discovered" in out
    assert "NOT_FOUND ADAPTER_NOT_FOUND" in out
    assert "abstained" in out


@pytest.mark.slow
async def test_buf_curl_needs_no_proto(server, tmp_path):
    out = await output(str(EXAMPLES / "buf_curl.sh"), server.address, "a medical question", cwd=tmp_path)
    assert "router.v1.InferenceService/StreamGenerate" in out
    assert "grpc.health.v1.Health/Check" in out
    assert '"adapter": "adapters/medical/versions/1.0.0"' in out
    assert '"finished"' in out


@pytest.mark.interop
async def test_a_node_client_made_from_the_proto_files(server, tmp_path):
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("no npm")
    shutil.copytree(EXAMPLES / "node", tmp_path / "examples" / "node")
    (tmp_path / "proto").symlink_to(EXAMPLES.parent / "proto")
    folder = tmp_path / "examples" / "node"
    await output(npm, "install", "--prefer-offline", "--no-audit", "--no-fund", cwd=folder)
    out = await output("node", "client.js", server.address, "a medical question", cwd=folder)
    unary, streamed, finished = out.splitlines()
    assert unary.startswith("[adapters/medical/versions/1.0.0] ")
    assert streamed == unary
    assert finished == "FINISH_REASON_STOP"
