"""The mark `@hookimpl` of functions that implement a hook."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, overload

import pluggy

NAME = "lora_router"
_mark = pluggy.HookimplMarker(NAME)
F = TypeVar("F", bound=Callable[..., Any])
LIMITS = "lora_router_limits"  # attribute of an implementation


@dataclass(frozen=True, slots=True)
class HookLimits:
    """What `@hookimpl` says of an implementation of `rewrite_request`.

    `timeout_ms`: wall time that a call may take. `required`: a request that it fails on is refused with
    UNAVAILABLE; otherwise the request goes on unchanged.
    """

    timeout_ms: int = 10_000
    required: bool = False


@overload
def hookimpl(function: F) -> F: ...
@overload
def hookimpl(*, timeout_ms: int = ..., required: bool = ..., **options: Any) -> Callable[[F], F]: ...
def hookimpl(
    function: F | None = None, *, timeout_ms: int = 10_000, required: bool = False, **options: Any
) -> F | Callable[[F], F]:
    """Mark a function as the implementation of the hook of its name. `options` are pluggy's own."""

    def mark(marked: F) -> F:
        setattr(marked, LIMITS, HookLimits(timeout_ms, required))
        _mark(marked, **options)
        return marked

    return mark if function is None else mark(function)
