"""A small typed client: `Client` for threads, `AsyncClient` for asyncio. Imports no torch.

Names of experiments are found when they are asked for, so that the rest needs none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from router.client.aio import AsyncClient
from router.client.channel import ClientError, of_experiments
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

if TYPE_CHECKING:
    from router.extensions.experiments.client import (
        Accepted,
        ArmSpec,
        Experiment,
        Kind,
        Lifecycle,
        MetricSpec,
        Mode,
        Outcome,
        Promotion,
        Recorded,
        Report,
        SegmentSpec,
        Spec,
        metric,
    )

__all__ = [
    "Accepted",
    "Adapter",
    "AdapterEvent",
    "AdapterRef",
    "AdapterState",
    "Answer",
    "ArmSpec",
    "AsyncClient",
    "Client",
    "ClientError",
    "Decision",
    "DefaultChange",
    "Delta",
    "Event",
    "Experiment",
    "Feedback",
    "FeedbackRecorded",
    "FinishReason",
    "Finished",
    "Kind",
    "Label",
    "Lifecycle",
    "MetricSpec",
    "Mode",
    "Outcome",
    "Plugin",
    "Promotion",
    "Reason",
    "Recorded",
    "Replica",
    "Report",
    "SegmentSpec",
    "Spec",
    "Started",
    "TokenCount",
    "Tool",
    "ToolCall",
    "ToolCallDelta",
    "Turn",
    "Unloaded",
    "Usage",
    "metric",
]


def __getattr__(name: str) -> Any:
    """A name of experiments, as in `__all__`."""
    if name in __all__:
        return of_experiments(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
