"""Clients of OpenAI's API as their makers ship them, each in an environment of its own, against a server.

What each is asked to do is in `clients/`: an answer whole and streamed, who gave it, a call of a function, an
answer of a given shape, and a model that is not there. The environments are made on first use and kept in the
user's cache folder: some 1.5 GB together, and 3 GB for Open WebUI.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import venv
from asyncio.subprocess import PIPE
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from router.folders import cache_folder
from tests.extensions.openai.test_embeddings import Words
from tests.server.http_helpers import StartWeb

CLIENTS = Path(__file__).parent / "clients"
CACHE = cache_folder() / "clients"
MADE = "made"  # of an environment that is whole
NODE = "openai@7.57.0"
LANGCHAIN = "langchain==1.5.2 langchain-openai==1.7.4"
ADAPTER = "adapters/medical/versions/1.0.0"
MODEL = "medical@1.0.0"
ANSWER, PLAIN = "[735baca7] Be brief. a medical question", "[735baca7] a medical question"
SHOWN = {"model": MODEL, "adapter": ADAPTER, "streamed_model": MODEL, "streamed_adapter": ADAPTER}


def elsewhere(test: Any) -> Any:
    """Marks a test of a client that has to be installed first."""
    return pytest.mark.interop(pytest.mark.long(pytest.mark.timeout(1800)(test)))


def python_with(requirements: str) -> str:
    """The Python of an environment that has them; skips where they cannot be had."""
    folder = CACHE / requirements
    python = folder / "bin" / "python"
    if not (folder / MADE).exists():
        venv.create(folder, with_pip=True, clear=True)
        install = (str(python), "-m", "pip", "install", "-q", "--no-compile", *requirements.split())
        if subprocess.run(install, check=False).returncode:
            pytest.skip(f"{requirements} cannot be installed")
        (folder / MADE).touch()
    return str(python)


def node_with(package: str) -> Path:
    """A folder with the package; skips where it cannot be had."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("no npm")
    folder = CACHE / package
    if not (folder / MADE).exists():
        folder.mkdir(parents=True, exist_ok=True)
        install = (npm, "install", "--prefer-offline", "--no-audit", "--no-fund", "--prefix", ".", package)
        if subprocess.run(install, cwd=folder, check=False).returncode:
            pytest.skip(f"{package} cannot be installed")
        (folder / MADE).touch()
    return folder


async def output(command: Sequence[str], folder: Path) -> str:
    """What it prints; fails with what it says. The server's loop goes on meanwhile."""
    alone = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "OPENAI_"))}
    process = await asyncio.create_subprocess_exec(
        *command, cwd=folder, env=alone | {"HOME": str(folder)}, stdout=PIPE, stderr=PIPE
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode()


@pytest.fixture
async def at(start_web: StartWeb, fakes: SimpleNamespace) -> SimpleNamespace:
    """A server's URL, and for whom it routed."""
    server = await start_web(**vars(fakes), encoder=Words())

    def units() -> list[str]:
        return [request.routing.unit for request in fakes.router.requests]

    url = f"http://{server.http_address}/v1"
    return SimpleNamespace(url=url, units=units, server=server, router=fakes.router)


async def seen_by(requirements: str, script: str, at: SimpleNamespace, folder: Path) -> dict[str, Any]:
    """What a client in Python saw, but its version."""
    python = await asyncio.to_thread(python_with, requirements)
    printed = await output((python, "-P", str(CLIENTS / script), at.url), folder)
    print(printed)  # its version, for anyone who runs this with -s
    seen: dict[str, Any] = json.loads(printed.splitlines()[-1])
    assert seen.pop("version")
    return seen


def checked(seen: dict[str, Any]) -> dict[str, Any]:
    """What all see alike is taken out."""
    assert (seen.pop("whole"), seen.pop("streamed")) == (ANSWER, ANSWER)
    assert len(seen.pop("id").removeprefix("chatcmpl-")) == 32
    assert seen.pop("tokens") > 0
    return seen


async def test_curl(at: SimpleNamespace, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("no curl")
    printed = await output(("sh", str(CLIENTS / "with_curl.sh"), at.url), tmp_path)
    whole, streamed, unknown, models, _ = printed.split("\n----\n")
    head, _, body = whole.replace("\r", "").partition("\n\n")
    assert head.startswith("HTTP/1.1 200 OK\n")
    assert f"\nx-router-adapter: {ADAPTER}\n" in head
    assert json.loads(body)["choices"][0]["message"]["content"] == ANSWER
    assert json.loads(body)["routing"]["adapter"] == ADAPTER
    *events, done, _ = streamed.split("\n\n") if streamed.endswith("\n\n") else [*streamed.split("\n\n"), ""]
    assert done == "data: [DONE]"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert chunks[0]["routing"]["adapter"] == ADAPTER
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == ANSWER
    assert json.loads(unknown)["error"]["code"] == "model_not_found"
    assert json.loads(models)["data"][0]["id"] == "auto"
    assert at.units()[:2] == ["anna", "anna"]


@elsewhere
async def test_openai(at: SimpleNamespace, tmp_path: Path) -> None:
    assert checked(await seen_by("openai==3.57.0", "with_openai.py", at, tmp_path)) == {
        **SHOWN,
        "routing": ADAPTER,
        "parsed": "bool",
        "called": ["Pet", "bool"],
        "after_call": "base",
        "response": [ANSWER, MODEL],
        "response_streamed": "response.completed",
        "response_parsed": "bool",
        "embedded": 2,
        "plain": [PLAIN, PLAIN],
        "models": ["auto", "base"],
        "errors": {
            "unknown": ["NotFoundError", "model_not_found", "model"],
            "field": ["BadRequestError", "invalid_request", "top_kk"],
            "value": ["BadRequestError", "invalid_request", "temperature"],
            "long": ["BadRequestError", "context_length_exceeded", "messages"],
        },
    }
    assert at.units()[:2] == ["anna", "anna"]


@elsewhere
async def test_langchain(at: SimpleNamespace, tmp_path: Path) -> None:
    assert checked(await seen_by(LANGCHAIN, "with_langchain.py", at, tmp_path)) == {
        **SHOWN,
        "plain": PLAIN,
        "shaped": "bool",
        "called": ["Pet", "bool"],
        "called_streamed": ["Pet"],
        "offered": [True, []],
        "response": ANSWER,
        "response_streamed": ANSWER,
        "embedded": 2,
        "agent": ANSWER,
        "agent_streamed": ANSWER,
        "agent_shaped": "bool",
        "unknown": ["OpenAIModelNotFoundError", "model_not_found"],
    }
    assert at.units()[:2] == ["anna", "anna"]


@elsewhere
async def test_llamaindex(at: SimpleNamespace, tmp_path: Path) -> None:
    assert checked(
        await seen_by("llama-index-llms-openai-like==0.8.1", "with_llamaindex.py", at, tmp_path)
    ) == {
        **SHOWN,
        "plain": PLAIN,
        "plain_streamed": PLAIN,
        "called": ["weather", "bool"],
        "unknown": ["NotFoundError", "model_not_found"],
    }
    assert at.units()[:2] == ["anna", "anna"]


@elsewhere
async def test_litellm(at: SimpleNamespace, tmp_path: Path) -> None:
    assert checked(await seen_by("litellm==1.110.2", "with_litellm.py", at, tmp_path)) == {
        **SHOWN,
        "streamed_model": "auto",  # the events say who answered; it says what was asked for
        "routing": ADAPTER,
        "hosted_vllm": [ANSWER, MODEL],
        "litellm_proxy": [ANSWER, f"litellm_proxy/{MODEL}"],
        "plain": PLAIN,
        "called": ["weather", ["rainy"]],
        "called_streamed": ["weather", ["rainy"]],
        "offered": ANSWER,
        "embedded": 2,
        "unknown": ["NotFoundError", 404],
    }
    units = at.units()
    assert units[:2] == ["anna", "anna"]
    assert "berta" in units  # the header comes through
    assert "dropped" not in units  # `user` does not


@elsewhere
async def test_behind_litellms_proxy(at: SimpleNamespace, tmp_path: Path) -> None:
    assert checked(await seen_by("litellm[proxy]==1.108.7", "behind_litellm.py", at, tmp_path)) == {
        "adapter": ADAPTER,
        "routing": ADAPTER,
        "base": "[base] Be brief. a medical question",
        "fallback": [ADAPTER, "1"],
    }


@elsewhere
async def test_llm(at: SimpleNamespace, tmp_path: Path) -> None:
    seen = checked(await seen_by("llm==0.36", "with_llm.py", at, tmp_path))
    kind, text = seen.pop("unknown")
    assert (kind, "model 'nobody' not found" in text) == ("NotFoundError", True)
    assert seen == {"model": MODEL, "adapter": ADAPTER, "streamed_model": MODEL, "command": ANSWER}


@elsewhere
async def test_node(at: SimpleNamespace, tmp_path: Path) -> None:
    folder = await asyncio.to_thread(node_with, NODE)
    shutil.copy(CLIENTS / "with_node.mjs", tmp_path)
    (tmp_path / "node_modules").symlink_to(folder / "node_modules")  # where a module beside it looks
    printed = await output(("node", "with_node.mjs", at.url), tmp_path)
    seen = checked(json.loads(printed.splitlines()[-1]))
    assert seen.pop("version")
    assert seen.pop("models")[:2] == ["auto", "base"]
    assert seen == {
        **SHOWN,
        "routing": ADAPTER,
        "plain": PLAIN,
        "unknown": ["NotFoundError", "model_not_found"],
        "response": [ANSWER, MODEL],
        "response_streamed": ANSWER,
    }
    assert at.units()[:2] == ["anna", "anna"]


@elsewhere
async def test_pydantic_ai(at: SimpleNamespace, tmp_path: Path) -> None:
    seen = checked(await seen_by("pydantic-ai-slim[openai]==2.68.0", "with_pydantic_ai.py", at, tmp_path))
    assert seen == {
        "model": MODEL,
        "streamed_model": MODEL,
        "shaped": "bool",
        "offered": ANSWER,
        "shaped_offered": ["bool", 0],
        "native": "bool",
        "response": ANSWER,
        "response_shaped": "bool",
        "unknown": ["ModelNotFoundError", 404],
    }


@elsewhere
async def test_instructor(at: SimpleNamespace, tmp_path: Path) -> None:
    assert await seen_by("instructor==1.17.0", "with_instructor.py", at, tmp_path) == {
        "TOOLS": ["bool", MODEL],
        "JSON_SCHEMA": ["bool", MODEL],
        "streamed": "bool",
        "unknown": ["InstructorRetryException", True],
    }


@elsewhere
async def test_dspy(at: SimpleNamespace, tmp_path: Path) -> None:
    assert await seen_by("dspy==3.4.1", "with_dspy.py", at, tmp_path) == {
        "whole": PLAIN,
        "model": MODEL,
        "unshaped": "AdapterParseError",  # this engine repeats the prompt
        "shaped": ["str", "bool"],
    }


@elsewhere
async def test_openai_agents(at: SimpleNamespace, tmp_path: Path) -> None:
    seen = await seen_by("openai-agents==0.24.0", "with_agents.py", at, tmp_path)
    assert (
        seen.pop("responses")
        == seen.pop("chat_completions")
        == {
            "whole": ANSWER,
            "streamed": ANSWER,
            "called": 1,
            "after_call": '[735baca7] Be brief. Result of weather {"rainy":false}: sunny a medical question',
            "offered": ANSWER,
            "shaped": "bool",
            "tokens": True,
            "unknown": ["NotFoundError", "model_not_found"],
        }
    )
    assert not seen


@elsewhere
async def test_open_webui(at: SimpleNamespace, tmp_path: Path) -> None:
    assert await seen_by("open-webui==0.12.4", "with_open_webui.py", at, tmp_path) == {
        "models": ["auto", "base"],
        "whole": PLAIN,
        "error": None,
        "title": "a medical question",  # this engine gives none
    }
    asked = [(request.text[:9], request.routing.adapter) for request in at.router.requests]
    assert sorted(asked) == [("### Task:", "base")] * 3 + [("a medical", "")]  # title, tags, next questions
    assert [len(request.tools.functions) > 5 for request in at.router.requests].count(True) == 1
