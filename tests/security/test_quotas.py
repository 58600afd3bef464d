"""Quotas as a client meets them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.security.helpers import bearer, write_clients
from tests.server.helpers import Connect, Start, ask, details, failure, long_stream, until

Quoted = Callable[[str], object]


@pytest.fixture
def quoted(start_server: Start, connect: Connect, tmp_path: Path, fakes: SimpleNamespace) -> Quoted:
    """Start a server whose clients have that quota; gives stubs, metadata of one client and of another."""

    async def start(quota: str) -> SimpleNamespace:
        clients = write_clients(tmp_path, more=quota, mine=("infer",), other=("infer",))
        server = await start_server(**vars(fakes), clients=clients.path)
        mine, other = bearer(clients.mine), bearer(clients.other)
        return SimpleNamespace(server=server, stubs=connect(server), mine=mine, other=other)

    return start


async def test_calls_a_minute(quoted: Quoted) -> None:
    at = await quoted("requests_per_minute = 3")  # type: ignore[misc]
    for _ in range(3):
        assert (await at.stubs.inference.Generate(ask(), metadata=at.mine)).text
    error = await failure(at.stubs.inference.Generate(ask(), metadata=at.mine))
    found = details(error)
    assert (error.code().name, found["ErrorInfo"].reason) == ("RESOURCE_EXHAUSTED", "QUOTA")
    assert found["ErrorInfo"].metadata["quota"] == "requests_per_minute"
    assert found["QuotaFailure"].violations[0].subject == "client:mine"
    assert 10 < found["RetryInfo"].retry_delay.ToSeconds() <= 20
    assert re.search("3 calls a minute", error.details())
    assert (await at.stubs.inference.Generate(ask(), metadata=at.other)).text


async def test_calls_at_once(quoted: Quoted) -> None:
    at = await quoted("max_concurrent = 1")  # type: ignore[misc]
    running = at.stubs.inference.StreamGenerate(long_stream(), metadata=at.mine)
    await anext(aiter(running))
    error = await failure(at.stubs.inference.Generate(ask(), metadata=at.mine))
    assert details(error)["ErrorInfo"].metadata["quota"] == "max_concurrent"
    assert (await at.stubs.inference.Generate(ask(), metadata=at.other)).text
    running.cancel()
    await until(lambda: at.server.admission.in_flight == 0)
    assert (await at.stubs.inference.Generate(ask(), metadata=at.mine)).text


async def test_tokens_a_minute(quoted: Quoted, fakes: SimpleNamespace) -> None:
    at = await quoted("tokens_per_minute = 200")  # type: ignore[misc]
    most = {"sampling": {"max_tokens": 120}}
    for _ in range(3):  # what an answer does not need is given back
        assert (await at.stubs.inference.Generate(ask("one two", **most), metadata=at.mine)).text
    too_much = ask("one two", sampling={"max_tokens": 300})
    error = await failure(at.stubs.inference.Generate(too_much, metadata=at.mine))
    assert "RetryInfo" not in details(error)
    fakes.engine.hold()
    held = at.stubs.inference.Generate(ask("one two", **most), metadata=at.mine)
    await until(lambda: fakes.engine.status().busy)
    error = await failure(at.stubs.inference.Generate(ask("one two", **most), metadata=at.mine))
    found = details(error)
    assert found["ErrorInfo"].metadata["quota"] == "tokens_per_minute"
    assert found["RetryInfo"].retry_delay.ToSeconds() >= 1
    fakes.engine.resume()
    assert (await held).text


async def test_a_cancelled_answer_has_used_what_was_generated(quoted: Quoted) -> None:
    at = await quoted("tokens_per_minute = 600")  # type: ignore[misc]
    call = at.stubs.inference.StreamGenerate(long_stream(500), metadata=at.mine)
    tokens = 0
    async for event in call:
        tokens += event.delta.tokens if event.HasField("delta") else 0
        if tokens >= 50:
            break
    call.cancel()
    await until(lambda: at.server.admission.in_flight == 0)
    over = ask("one", sampling={"max_tokens": 600 - tokens})
    assert details(await failure(at.stubs.inference.Generate(over, metadata=at.mine)))
    less = ask("one", sampling={"max_tokens": 100})
    assert (await at.stubs.inference.Generate(less, metadata=at.mine)).text
