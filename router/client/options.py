"""Keyword options of calls. Each is optional; what is not said takes the adapter's or server's default."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypedDict

from router.types import Turn

Prompt = str | Sequence[Turn]


class CallOptions(TypedDict, total=False):
    """`timeout` in seconds (None: no deadline); `request_id` is echoed by the server and in its log."""

    timeout: float | None
    request_id: str


class RouteOptions(CallOptions, total=False):
    """`adapter` pins: NAME, NAME@VERSION or a resource name. `raw` continues the text with no template."""

    adapter: str
    domain: str
    task: str
    unit: str
    explain: bool
    system: str
    raw: bool


class GenerateOptions(RouteOptions, total=False):
    """Sampling as in `router.v1.Sampling`, and labels for the server's log."""

    max_tokens: int
    min_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    frequency_penalty: float
    presence_penalty: float
    seed: int
    stop: Sequence[str]
    logprobs: int
    labels: Mapping[str, str]


ROUTING = ("domain", "task", "unit", "explain")
SAMPLING = (
    "max_tokens",
    "min_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
    "seed",
    "stop",
    "logprobs",
)


def check_known(given: Iterable[str], known: type) -> None:
    """Raise TypeError for an option that `known` does not have, as a plain signature would."""
    unknown = sorted(set(given) - set(known.__annotations__))
    if unknown:
        raise TypeError(
            f"unknown option {unknown[0]!r}; options are {', '.join(sorted(known.__annotations__))}"
        )
