"""A small typed client: `Client` for threads, `AsyncClient` for asyncio. Imports no torch.

Names of experiments are found when they are asked for, so that the rest needs none.
"""

from __future__ import annotations

from router.client.aio import AsyncClient
from router.client.channel import ClientError
from router.client.sync import Client
from router.client.values import (
    Adapter,
    Answer,
    DefaultChange,
    Delta,
    Event,
    FeedbackRecorded,
    Finished,
    Label,
    Plugin,
    Replica,
    Started,
    TokenCount,
    ToolCallDelta,
    Unloaded,
)
from router.feedback.model import Feedback
from router.types import (
    AdapterEvent,
    AdapterRef,
    AdapterState,
    Decision,
    FinishReason,
    Reason,
    Tool,
    ToolCall,
    Turn,
    Usage,
)

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
    "Feedback",
    "FeedbackRecorded",
    "FinishReason",
    "Finished",
    "Label",
    "Plugin",
    "Reason",
    "Replica",
    "Started",
    "TokenCount",
    "Tool",
    "ToolCall",
    "ToolCallDelta",
    "Turn",
    "Unloaded",
    "Usage",
]
