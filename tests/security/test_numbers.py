"""Numbers that are none, negative, huge or empty harm who sends them, and nobody beside."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Collection
from contextlib import suppress
from dataclasses import fields
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor
from hypothesis import given
from hypothesis import strategies as st

from router.client.values import GenerateOptions
from router.errors import InvalidRequest
from router.extensions.kserve import tensors
from router.extensions.openai import requests
from router.server.requests import RequestLimits, generate_request
from router.types import SAMPLING_RANGES, Sampling, SamplingParams
from router.v1 import inference_pb2 as pb
from tests.server.helpers import Connect, Start, ask, failure

KINDS = {
    FieldDescriptor.CPPTYPE_FLOAT: st.floats(width=32),
    FieldDescriptor.CPPTYPE_INT32: st.integers(-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.CPPTYPE_INT64: st.integers(-(1 << 63), (1 << 63) - 1),
}
NUMERIC = {f.name: f.cpp_type for f in pb.Sampling.DESCRIPTOR.fields if f.cpp_type in KINDS}
LIMITS = RequestLimits(1 << 20, 4096)
ODD = (math.nan, math.inf, -math.inf)
FLOAT = FieldDescriptor.CPPTYPE_FLOAT


def test_every_number_of_a_request_has_a_range() -> None:
    assert set(NUMERIC) == set(SAMPLING_RANGES)


def test_what_is_asked_for_is_what_the_engine_gets() -> None:
    assert [f.name for f in fields(Sampling)] == [f.name for f in fields(SamplingParams)]


@pytest.mark.parametrize(
    ("door", "fields", "lacks"),
    [
        ("OpenAI, chat", requests.ChatCompletion.model_fields, set()),
        ("OpenAI, completion", requests.Completion.model_fields, set()),
        ("KServe", (*tensors.INTEGERS, *tensors.NUMBERS), {"logprobs"}),
        ("client", GenerateOptions.__annotations__, set()),
    ],
)
def test_sampling_fields_that_a_door_lacks(door: str, fields: Collection[str], lacks: set[str]) -> None:
    assert set(SAMPLING_RANGES) - set(fields) == lacks, f"add it to {door}, or name it here"


@pytest.mark.parametrize("field", NUMERIC)
def test_any_value_is_in_range_or_refused_by_name(field: str) -> None:
    @given(KINDS[NUMERIC[field]])
    def check(value: float) -> None:
        refused: set[str] = set()
        said = math.nan
        try:
            said = getattr(generate_request(ask(sampling={field: value}), "id", LIMITS).sampling, field)
        except InvalidRequest as error:
            refused = {v.field for v in error.violations}
        assert refused == {f"sampling.{field}"} or (not refused and said in SAMPLING_RANGES[field])
        assert refused or math.isfinite(said)

    check()


@pytest.mark.parametrize("text", ["", " ", "\n\t", "\u200b", "\0"])
async def test_an_empty_prompt_is_an_answer_or_a_refusal(stubs: Any, text: str) -> None:
    with suppress(grpc.aio.AioRpcError):
        assert await stubs.inference.Generate(ask(text), timeout=20)
    assert (await stubs.inference.Generate(ask("one two"), timeout=20)).text


async def test_neighbours_of_bad_numbers_answer_as_alone(start_server: Start, connect: Connect) -> None:
    stubs = connect(await start_server())
    asked = [ask(f"{word} and more", sampling={"seed": i}) for i, word in enumerate("abcdefgh")]
    alone = [(await stubs.inference.Generate(one)).text for one in asked]
    bad = [
        ask("bad", sampling={field: value})
        for field, kind in NUMERIC.items()
        if kind == FLOAT
        for value in ODD
    ]
    bad += [ask("bad", sampling={field: -1}) for field in ("max_tokens", "min_tokens", "top_k", "logprobs")]
    assert len(bad) > 15

    async def refused(one: pb.GenerateRequest) -> str:
        return str((await failure(stubs.inference.Generate(one))).code().name)

    answers, codes = await asyncio.gather(
        asyncio.gather(*(stubs.inference.Generate(one) for one in asked)), asyncio.gather(*map(refused, bad))
    )
    assert [answer.text for answer in answers] == alone
    assert set(codes) == {"INVALID_ARGUMENT"}
