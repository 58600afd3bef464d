"""A grammar that is much work, on the real base: its rows fail, and nobody else notices."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from router.v1 import inference_pb2 as pb
from router.v1.inference_pb2_grpc import InferenceServiceStub
from tests.security.attacks import floods
from tests.serving import serving

pytestmark = pytest.mark.slow
TOKENS = 24


async def test_streams_of_an_ambiguous_grammar_fail_alone(tmp_path: Path) -> None:
    with serving(tmp_path) as (_, address):
        async with grpc.aio.insecure_channel(address) as channel:
            stub, health = InferenceServiceStub(channel), HealthStub(channel)
            attacking = asyncio.create_task(floods.ambiguous(address, 8, 10))
            request = pb.GenerateRequest(
                input=pb.Input(text="Tell me of the sea."),
                sampling=pb.Sampling(max_tokens=TOKENS, min_tokens=TOKENS),
            )
            answers = 0
            while not attacking.done():
                reply = await stub.Generate(request, timeout=120)
                assert reply.usage.completion_tokens == TOKENS
                said = await health.Check(HealthCheckRequest(), timeout=60)
                assert said.status == HealthCheckResponse.SERVING
                answers += 1
            seen = attacking.result()
    assert answers
    assert seen.total() >= 8
    assert all(what.startswith("INVALID_ARGUMENT: sampling.grammar: is too complex") for what in seen), seen
