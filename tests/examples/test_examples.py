"""Every example runs against a server."""

import asyncio
import json
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from router.extensions.experiments.store.store import ExperimentStore
from tests.extensions.experiments.service.lab import experimenting

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


@pytest.mark.slow
async def test_an_experiment_from_plan_to_verdict(fakes, start_server, connect, tmp_path):
    store = ExperimentStore(f"sqlite:///{tmp_path}/experiments.db")
    async with experimenting(store, fakes, start_server, connect) as lab:
        out = await output(sys.executable, "python_experiment.py", lab.app.address)
    base, specialist, verdict = out.splitlines()
    counts = [int(line.split()[1]) for line in (base, specialist)]
    assert min(counts) >= 10
    assert sum(counts) == 40
    assert verdict.startswith("undecided")


@pytest.fixture
async def url(fakes, start_server):
    server = await start_server(**vars(fakes), http_listen="127.0.0.1:0")
    return f"http://{server.http_address}/v1"


@pytest.mark.slow
async def test_openais_client(url):
    out = await output(sys.executable, "openai_client.py", url, "a medical question")
    routed, base, explained, unknown = out.splitlines()
    assert routed.startswith("[medical@1.0.0] ")
    assert base
    assert explained.startswith("DECISION_REASON_CLASSIFIED ['")
    assert unknown == "404 model_not_found"


async def test_curl_alone(url):
    out = await output(str(EXAMPLES / "curl.sh"), url, "a medical question")
    lines = out.splitlines()
    assert [model["id"] for model in json.loads(lines[0])["data"]][:2] == ["auto", "base"]
    assert "x-router-adapter: adapters/medical/versions/1.0.0" in lines
    assert "data: [DONE]" in lines
    assert json.loads(lines[-1])["choices"][0]["message"]["content"] in ("yes", "no")


PAGE = Path(__file__).parents[2] / "docs" / "constrained.md"


@pytest.mark.slow
async def test_answers_with_a_shape_as_the_page_shows_them(server, tmp_path):
    source, *_ = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "page.py").write_text(source.replace("127.0.0.1:50051", server.address))
    pet, sky, year, added, quoted, month = (
        await output(sys.executable, "page.py", cwd=tmp_path)
    ).splitlines()
    assert json.loads(pet)["kind"] in ("cat", "dog")
    assert sky in ("yes", "no")
    assert re.fullmatch(r"\d{4}", year)
    assert re.fullmatch(r"\d{1,3}\+\d{1,3}", added)
    assert quoted
    assert quoted in "Jean Ribault charted the river in 1562."
    assert month in "It rained in May."


@pytest.mark.slow
async def test_commands_of_that_page(server, tmp_path):
    (block,) = re.findall(r"```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "pet.json").write_text('{"enum": ["a cat"]}')
    contract = "The buyer is Ines Maurer, who signs in May."
    (tmp_path / "contract.txt").write_text(contract)
    answers = []
    for line in block.splitlines():
        _, *arguments = shlex.split(line)
        command = (sys.executable, "-m", "router.cli", *arguments, "--server", server.address)
        answers.append(await output("sh", "-c", 'exec "$@" 2>/dev/null', "sh", *command, cwd=tmp_path))
    assert answers[:2] == ["no\n", '"a cat"\n']
    assert answers[2].strip()
    assert answers[2].strip() in contract
