"""A small typed client: `Client` for threads, `AsyncClient` for asyncio. Imports no torch."""

from router.client.aio import AsyncClient
from router.client.errors import ClientError
from router.client.experiment_results import Experiment, Outcome, Promotion, Recorded, metric
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
from router.experiments.kind import Kind
from router.experiments.model import Accepted, ArmSpec, Lifecycle, MetricSpec, Mode, RouterVariant, Spec
from router.experiments.report.model import Report
from router.types import AdapterEvent, AdapterRef, AdapterState, Decision, FinishReason, Reason, Turn, Usage

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
    "FinishReason",
    "Finished",
    "Kind",
    "Lifecycle",
    "MetricSpec",
    "Mode",
    "Outcome",
    "Promotion",
    "Reason",
    "Recorded",
    "Report",
    "RouterVariant",
    "Spec",
    "Started",
    "TokenCount",
    "Turn",
    "Unloaded",
    "Usage",
    "metric",
]
