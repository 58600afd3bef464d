"""A server with an HTTP address, OpenAI's client, and a client that sends what it is told."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import httpx2
import openai
import pytest

from router.server.app import ServerApp
from tests.server.helpers import Start

StartWeb = Callable[..., Awaitable[ServerApp]]
Http = Callable[..., httpx2.AsyncClient]


@pytest.fixture
def start_web(start_server: Start) -> StartWeb:
    """`start_server` with an HTTP address."""

    async def start(**settings: Any) -> ServerApp:
        return await start_server(http_listen="127.0.0.1:0", **settings)

    return start


@pytest.fixture
async def http() -> AsyncIterator[Http]:
    """Plain HTTP to a server."""
    async with AsyncExitStack() as stack:

        def connect(server: ServerApp, **options: Any) -> httpx2.AsyncClient:
            client = httpx2.AsyncClient(base_url=f"http://{server.http_address}", timeout=20, **options)
            stack.push_async_callback(client.aclose)
            return client

        yield connect


@pytest.fixture
async def client(start_web: StartWeb) -> AsyncIterator[openai.AsyncOpenAI]:
    """OpenAI's client of a server with the adapters medical and legal."""
    server = await start_web()
    async with connect(server) as made:
        yield made


def connect(server: ServerApp, token: str = "none", scheme: str = "http") -> openai.AsyncOpenAI:
    """OpenAI's client."""
    return openai.AsyncOpenAI(base_url=f"{scheme}://{server.http_address}/v1", api_key=token, max_retries=0)


def asking(text: str = "one two three", **fields: Any) -> dict[str, Any]:
    """The body of a chat completion."""
    return {"model": "auto", "messages": [{"role": "user", "content": text}], **fields}
