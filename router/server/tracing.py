"""What a trace of a call is made of, and the port to what makes one.

A call keeps a few times as it goes. Spans are made of them when it has ended, so that nothing of tracing
stands in the way of a request, and where nobody traces there is nothing to leave out.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from router.errors import RouterError

if TYPE_CHECKING:
    from router.server.call import Call

ROUTE, LEASE, ENCODE = "route", "lease", "encode"
Metadata = Iterable[tuple[str, str | bytes]]


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of a call, in `time.monotonic()` seconds; `failed` is the reason for which it was its last."""

    name: str
    began: float
    ended: float
    failed: str = ""


class Phases:
    """When the parts of one call were, until the engine has it; what comes then tells its `Usage`."""

    __slots__ = ("first_token", "seen", "submitted", "tokens")

    def __init__(self) -> None:
        self.seen: list[Phase] = []
        self.submitted = 0.0  # to the engine; 0 before that
        self.first_token = 0.0  # when it came; 0 before that
        self.tokens = 0  # that came so far

    @contextmanager
    def during(self, name: str) -> Iterator[None]:
        """The block is that part."""
        began, failed = time.monotonic(), ""
        try:
            yield
        except BaseException as error:
            failed = reason_of(error)
            raise
        finally:
            self.seen.append(Phase(name, began, time.monotonic(), failed))

    def came(self, tokens: int) -> None:
        """So many tokens of the answer."""
        self.first_token = self.first_token or time.monotonic()
        self.tokens += tokens


def reason_of(error: BaseException) -> str:
    """What an error is called in a trace."""
    if isinstance(error, RouterError):
        return error.reason
    return "CANCELLED" if isinstance(error, asyncio.CancelledError) else type(error).__name__


@dataclass(frozen=True, slots=True)
class Trace:
    """The span of a call that is recorded. Ids are as in `traceparent`; `origin` is the tracer's own."""

    trace_id: str
    span_id: str
    origin: Any = None

    @property
    def exemplar(self) -> dict[str, str]:
        """What a measurement points to."""
        return {"trace_id": self.trace_id, "span_id": self.span_id}


class Tracing(Protocol):
    """Makes traces. Both are called on the event loop, must return at once and not raise."""

    endpoint: str  # where they go, for operators

    def begin(self, metadata: Metadata) -> Trace | None:
        """The trace of a call that came with these headers; None for one that is not recorded."""
        ...

    def ended(self, call: Call, code: str, reason: str) -> None:
        """A call that has a trace has ended, with that status and, after an error, for that reason."""
        ...


class NoTracing:
    """Records nothing."""

    endpoint = ""

    def begin(self, metadata: Metadata) -> Trace | None:
        """None."""
        return None

    def ended(self, call: Call, code: str, reason: str) -> None:
        """Not called."""
