"""OpenAI's embeddings with its own client: by the sentence encoder, refusals, limits."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from openai.types import CreateEmbeddingResponse

from router.access.clients import hash_of
from router.engine.fake import FakeEngine
from router.errors import ConfigError
from router.server.app import ServerApp
from router.server.embedding import parts, pieces
from tests.server.helpers import until
from tests.server.http_helpers import Http, StartWeb, asking, connect

PATH = "/v1/embeddings"
TOKEN = "lrk_a_" + "a" * 43


class Words:
    """An encoder whose tokens are words; a vector counts their first letters. `gate` holds it up."""

    name, longest, size = "words", 8, 26

    def __init__(self, problem: str = "") -> None:
        self.problem, self.read = problem, list[Sequence[int]]()
        self.gate, self.entered = threading.Event(), threading.Event()
        self.gate.set()

    def load(self) -> None:
        if self.problem:
            raise ConfigError(self.problem)

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        return [[ord(word[0]) for word in text.split()] for text in texts]

    def vectors(self, tokens: Sequence[Sequence[int]]) -> Any:
        self.entered.set()
        assert self.gate.wait(10)
        self.read += tokens
        rows = np.zeros((len(tokens), self.size), np.float32)
        for row, ids in zip(rows, tokens, strict=True):
            np.add.at(row, np.asarray(ids) % self.size, 1)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def words() -> Words:
    return Words()


@pytest.fixture
async def server(start_web: StartWeb, words: Words) -> ServerApp:
    return await start_web(encoder=words)


def embedding(text: Any, **fields: Any) -> dict[str, Any]:
    return {"model": "encoder", "input": text, **fields}


async def test_vectors_come_in_the_order_of_the_texts(server: ServerApp) -> None:
    texts = [f"{chr(97 + i % 26)} " * (1 + i % 7) for i in range(70)]
    async with connect(server) as client:
        answer = await client.embeddings.create(model="encoder", input=texts)
        alone = await client.embeddings.create(model="encoder", input=texts[9])
    assert [entry.index for entry in answer.data] == list(range(70))
    assert answer.data[9].embedding == alone.data[0].embedding
    assert np.argmax(answer.data[9].embedding) == ord("j") % 26
    assert answer.usage.prompt_tokens == sum(len(text.split()) for text in texts)


async def test_an_answer_is_what_openai_says_it_is(server: ServerApp, http: Http) -> None:
    client = http(server)
    shown = [
        (await client.post(PATH, json=embedding("a b b", **fields))).content
        for fields in ({}, {"encoding_format": "base64"}, {"dimensions": 26, "user": "u"})
    ]
    plain, again = (CreateEmbeddingResponse.model_validate_json(shown[i], strict=True) for i in (0, 2))
    assert again == plain
    vector = np.array(plain.data[0].embedding, np.float32)
    assert np.linalg.norm(vector) == pytest.approx(1)
    packed = json.loads(shown[1])["data"][0]["embedding"]
    assert np.array_equal(np.frombuffer(base64.b64decode(packed), "<f4"), vector)
    assert plain.model_extra == {"system_fingerprint": "words"}


@pytest.mark.parametrize(
    ("fields", "status", "param", "hint"),
    [
        ({"input": []}, 400, "input", "1 to 2048 texts, got 0"),
        ({"input": ["x"] * 2049}, 400, "input", "got 2049"),
        ({"input": ["x", ""]}, 400, "input", "[1] must be a text that is not empty"),
        ({"input": [1, 2]}, 400, "input", "send text"),
        ({"input": [[1, 2]]}, 400, "input", "send text"),
        ({"input": ["x", "x " * 9]}, 400, "input[1]", "9 tokens, and one text may have 8"),
        ({"input": "x" * 10_000}, 400, "input[0]", "10000 characters, and one text may have 512"),
        ({"dimensions": 8}, 400, "dimensions", "must be 26"),
        ({"model": "medical"}, 404, "model", "must be encoder"),
        ({"encoding_format": "int8"}, 400, "encoding_format", "base64"),
    ],
)
async def test_what_is_refused(
    server: ServerApp, http: Http, words: Words, fields: dict[str, Any], status: int, param: str, hint: str
) -> None:
    answer = await http(server).post(PATH, json=embedding("x") | fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, param), error
    assert hint in error["message"]
    assert not words.read or "dimensions" in fields


async def test_a_server_without_the_encoder_says_how_to_get_it(start_web: StartWeb, http: Http) -> None:
    server = await start_web(encoder=Words("it is not on this machine"))
    answer = await http(server).post(PATH, json=embedding("x"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    assert "lora-router models fetch" in answer.json()["error"]["message"]


async def test_tokens_count_against_quotas(start_web: StartWeb, words: Words, tmp_path: Path) -> None:
    clients = tmp_path / "clients.toml"
    mine = f'id = "a"\ntoken_sha256 = ["{hash_of(TOKEN)}"]\nroles = ["infer"]\ntokens_per_minute = 5'
    clients.write_text(f"[[client]]\n{mine}\n")
    server = await start_web(encoder=words, clients=clients)
    async with connect(server, TOKEN) as client:
        await client.embeddings.create(model="encoder", input=["a b", "c"])
        with pytest.raises(openai.RateLimitError):
            await client.embeddings.create(model="encoder", input="a b c")
    assert len(words.read) == 2


async def test_a_flood_leaves_places_for_answers(start_web: StartWeb, http: Http, words: Words) -> None:
    server = await start_web(encoder=words, max_running=4, max_queue=12)
    client = http(server)
    words.gate.clear()
    flood = [asyncio.ensure_future(client.post(PATH, json=embedding("x"))) for _ in range(12)]
    answer = await client.post("/v1/chat/completions", json=asking())
    assert answer.status_code == 200
    words.gate.set()
    statuses = sorted([one.status_code for one in await asyncio.gather(*flood)])
    assert statuses == [200] * 2 + [503] * 10
    assert server.admission.in_flight == 0


async def test_a_client_that_leaves_is_not_read_for(server: ServerApp, http: Http, words: Words) -> None:
    words.gate.clear()
    asked = asyncio.ensure_future(http(server).post(PATH, json=embedding([f"x {i}" for i in range(200)])))
    await asyncio.to_thread(words.entered.wait, 10)
    asked.cancel()
    await until(lambda: server.admission.in_flight == 0)
    words.gate.set()
    assert (await http(server).post(PATH, json=embedding("y"))).status_code == 200
    assert len(words.read) <= 33


async def test_the_thread_rests_while_answers_run(start_web: StartWeb, http: Http, words: Words) -> None:
    server = await start_web(encoder=words, engine=FakeEngine(step_seconds=0.02))
    client = http(server)
    body = asking(max_tokens=400, min_tokens=400)
    answering = asyncio.ensure_future(client.post("/v1/chat/completions", json=body))
    await until(lambda: server.engine.status().running == 1)
    server.embedding._rest = 0.3
    started = asyncio.get_running_loop().time()
    assert (await client.post(PATH, json=embedding("x"))).status_code == 200
    assert asyncio.get_running_loop().time() - started > 0.3
    answering.cancel()


def test_parts_are_of_like_length_and_bounded() -> None:
    lengths = [300, 5, 2000, 7, 900, 900, 6]
    found = list(parts(lengths))
    assert sorted(place for part in found for place in part) == list(range(7))
    assert all(len(part) * max(lengths[i] for i in part) <= 2048 for part in found)
    assert max(map(len, parts([1] * 100))) == 32


def test_pieces_keep_the_order() -> None:
    texts = ["a" * 40_000, "b" * 40_000, "c", "d" * 90_000, "e"]
    assert [len(piece) for piece in pieces(texts)] == [1, 2, 1, 1]
    assert [text for piece in pieces(texts) for text in piece] == texts
