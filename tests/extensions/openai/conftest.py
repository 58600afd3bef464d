"""OpenAI's client of a server."""

from __future__ import annotations

from collections.abc import AsyncIterator

import openai
import pytest

from tests.server.http_helpers import StartWeb, connect


@pytest.fixture
async def client(start_web: StartWeb) -> AsyncIterator[openai.AsyncOpenAI]:
    """OpenAI's client of a server with the adapters medical and legal."""
    server = await start_web()
    async with connect(server) as made:
        yield made
