"""A small typed client: `Client` for threads, `AsyncClient` for asyncio. Imports no torch."""

from router.client.aio import AsyncClient
from router.client.errors import ClientError
from router.client.results import (
    Adapter,
    Answer,
    DefaultChange,
    Delta,
    Event,
    Finished,
    Started,
    TokenCount,
    Unloaded,
)
from router.client.sync import Client
from router.types import AdapterEvent, AdapterRef, AdapterState, Decision, FinishReason, Reason, Turn, Usage

__all__ = [
    "Adapter",
    "AdapterEvent",
    "AdapterRef",
    "AdapterState",
    "Answer",
    "AsyncClient",
    "Client",
    "ClientError",
    "Decision",
    "DefaultChange",
    "Delta",
    "Event",
    "FinishReason",
    "Finished",
    "Reason",
    "Started",
    "TokenCount",
    "Turn",
    "Unloaded",
    "Usage",
]
