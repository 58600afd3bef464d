import asyncio
from contextlib import aclosing

import pytest

from router.client import AsyncClient, ClientError, Delta, Finished, Started
from router.types import AdapterEventKind


@pytest.fixture
async def client(remote):
    async with AsyncClient(remote.target, timeout=10) as made:
        yield made


async def test_generate_route_and_count(client, remote):
    answer = await client.generate("hi", request_id="req-9", system="Be short.")
    assert (answer.text, answer.response_id) == ("Chapter I", "req-9")
    assert (await client.route("hi")).classifier == "examples"
    assert (await client.count_tokens("hi")).prompt_tokens == 87
    roles = [m.role for m in remote.inference.requests[0].input.chat.messages]
    assert roles == [1, 2]


async def test_many_calls_share_one_client(client, remote):
    answers = await asyncio.gather(*(client.generate(f"q{i}") for i in range(8)))
    assert len({a.response_id for a in answers}) == 8


async def test_a_stream_starts_goes_on_and_finishes(client):
    events = [event async for event in client.stream("hi")]
    assert isinstance(events[0], Started)
    assert isinstance(events[-1], Finished)
    assert "".join(e.text for e in events if isinstance(e, Delta)) == "Chapter I"


async def test_closing_a_stream_cancels_the_call(client, remote):
    remote.inference.hang = True
    async with aclosing(client.stream("hi")) as events:
        async for event in events:
            if isinstance(event, Delta):
                break
    assert await asyncio.to_thread(remote.inference.cancelled.wait, 5)


async def test_cancelling_the_task_cancels_the_call(client, remote):
    remote.inference.hang = True

    async def read():
        async for _ in client.stream("hi"):
            pass

    task = asyncio.create_task(read())
    assert await asyncio.to_thread(remote.inference.entered.wait, 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(remote.inference.cancelled.wait, 5)


async def test_a_refused_stream_is_tried_again(client, remote):
    remote.inference.refusals = 1
    assert isinstance([event async for event in client.stream("hi")][-1], Finished)


async def test_errors_are_client_errors(client):
    with pytest.raises(ClientError) as caught:
        await client.generate("hi", adapter="nobody")
    assert (caught.value.code, caught.value.reason) == ("NOT_FOUND", "ADAPTER_NOT_FOUND")


async def test_adapters(client):
    assert len(await client.adapters.list(page_size=2)) == 5
    assert (await client.adapters.get("legal")).error
    assert (await client.adapters.load("medical", pinned=True)).pinned
    assert (await client.adapters.unload("medical")).freed_bytes == 4096
    assert (await client.adapters.set_default("medical@1.0.0", force=True, reason="r")).adapter.default
    assert (await client.adapters.reset_default("medical")).previous
    kinds = [event.kind async for event in client.adapters.watch()]
    assert kinds == [AdapterEventKind.ADDED, AdapterEventKind.REMOVED]
