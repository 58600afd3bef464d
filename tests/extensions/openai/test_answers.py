"""Every answer, event and error has the form of OpenAI's API."""

from __future__ import annotations

from typing import Any

import pytest

from router.extensions.openai import answers
from router.extensions.openai.logprobs import TextLogprobs, chat_logprobs
from router.v1 import inference_pb2 as pb
from tests.extensions.openai.validated import validated, validated_events
from tests.server.http_helpers import Http, StartWeb, asking

CHAT, PLAIN = "/v1/chat/completions", "/v1/completions"
BODIES = {
    "chat": (CHAT, asking(logprobs=True, top_logprobs=2, model="medical")),
    "plain": (PLAIN, {"prompt": "one two", "logprobs": 2, "model": "medical"}),
    "no logprobs": (CHAT, asking()),
}


@pytest.mark.parametrize("name", BODIES)
async def test_answers_and_events_are_as_the_clients_types_say(
    start_web: StartWeb, http: Http, name: str
) -> None:
    path, body = BODIES[name]
    client = http(await start_web())
    whole = validated((await client.post(path, json=body)).json())
    stream = {"stream": True, "stream_options": {"include_usage": True}}
    events = validated_events((await client.post(path, json=body | stream)).text)
    assert whole["id"].startswith("chatcmpl-" if path == CHAT else "cmpl-")
    for field in ("model", "system_fingerprint"):
        assert {event[field] for event in events} == {whole[field]}
    assert (events[-1]["choices"], events[-1]["usage"]) == ([], whole["usage"])
    if path == CHAT:
        assert whole["choices"][0]["message"]["refusal"] is None
        shown = [e["choices"][0]["logprobs"] for e in events[:-1] if e["choices"][0]["logprobs"]]
        joined = [token for one in shown for token in one["content"]]
        assert joined == (whole["choices"][0]["logprobs"] or {"content": []})["content"]
    else:
        shown = [e["choices"][0]["logprobs"] for e in events[:-1] if e["choices"][0]["logprobs"]]
        offsets = [offset for one in shown for offset in one["text_offset"]]
        assert offsets == whole["choices"][0]["logprobs"]["text_offset"]


async def test_models_and_errors_are_as_the_clients_types_say(start_web: StartWeb, http: Http) -> None:
    client = http(await start_web())
    models = validated((await client.get("/v1/models")).json())["data"]
    assert all(model["created"] > 1_600_000_000 for model in models[:2])  # of the others the fakes say none
    assert validated((await client.get("/v1/models/legal:2.0.0")).json())["id"] == "legal@2.0.0"
    error = validated((await client.get("/v1/models/lega")).json())["error"]
    assert "model 'lega' not found; did you mean 'legal'" in error["message"]
    for sent in ({}, asking(temperature=9), asking(model="nobody")):
        validated((await client.post(CHAT, json=sent)).json())
    validated((await client.get("/v1/nothing")).json())


def token(text: str, **more: Any) -> pb.TokenLogprob:
    return pb.TokenLogprob(token=text, logprob=-1.0, **more)


def test_a_character_of_several_tokens_has_its_own_bytes_and_one_offset() -> None:
    first, second = "🙂".encode()[:3], "🙂".encode()[3:]
    other = pb.TokenLogprob.Alternative(token="\ufffd", logprob=-2.0, bytes=b"\xf0")
    entries = [
        token("é"),
        token("\ufffd", bytes=first, top=[other]),
        token("\ufffd", bytes=second),
        token("x"),
    ]
    shown = chat_logprobs(entries, 1)["content"]
    assert bytes(byte for one in shown for byte in one["bytes"]).decode() == "é🙂x"
    assert shown[1]["top_logprobs"][0]["bytes"] == [0xF0]
    pieces = TextLogprobs()
    plain = pieces.of(entries[:2]), pieces.of(entries[2:])
    assert [offset for one in plain for offset in one["text_offset"]] == [0, 1, 1, 2]
    assert plain[0]["tokens"] == ["é", r"bytes:\xf0\x9f\x99"]
    assert plain[0]["top_logprobs"][1] == {r"bytes:\xf0": -2.0}


def test_the_fingerprint_names_the_weights() -> None:
    prints = {answers.fingerprint(*digests) for digests in (("a", ""), ("a", "b"), ("c", "b"))}
    assert len(prints) == 3
    assert {len(one) for one in prints} == {15}
