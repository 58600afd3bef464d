"""What is told of a call when it has ended: one log line, metrics, and its trace where it has one."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from router.errors import RouterError
from router.judging import REFERENCE
from router.server.call import GENERATIONS, Call
from router.server.logs import ACCESS_LOG, Sparse
from router.server.metrics import Metrics
from router.server.status import code_of
from router.server.tracing import Tracing

access_log = logging.getLogger(ACCESS_LOG)
LEVELS = {"INTERNAL": logging.ERROR, "DATA_LOSS": logging.ERROR, "UNAVAILABLE": logging.WARNING}


@contextmanager
def observed(call: Call, metrics: Metrics, logged: bool, lines: Sparse, tracing: Tracing) -> Iterator[None]:
    """One log line, the metrics and the trace of the call, however it ends; before its status leaves the
    server."""
    code, reason, bound = "OK", "", ""
    try:
        yield
    except asyncio.CancelledError:
        code = "DEADLINE_EXCEEDED" if call.expired else "CANCELLED"
        raise
    except grpc.aio.AbortError:
        code = "UNKNOWN"  # a library servicer's own refusal
        raise
    except Exception as error:
        code = code_of(error).name
        reason = error.reason if isinstance(error, RouterError) else type(error).__name__
        if isinstance(error, RouterError) and (bound := error.metadata.get("bound", "")):
            metrics.shed.labels(bound).inc()
        raise
    finally:
        metrics.record(call, code, generation=call.method in GENERATIONS)
        if call.trace is not None:
            tracing.ended(call, code, reason)
        if logged and (not bound or lines.next()):
            fields = log_fields(call, code, reason)
            if left_out := lines.left_out():
                fields["left_out"] = left_out
            access_log.log(LEVELS.get(code, logging.INFO), "request", extra={"fields": fields})


def log_fields(call: Call, code: str, error: str) -> dict[str, Any]:
    """What the log line of a call says; no text of prompt or answer unless the operator asked for it."""
    line: dict[str, Any] = {
        **call.ids,
        "method": call.method.rpartition("/")[2],
        "code": code,
        "seconds": round(time.monotonic() - call.started, 6),
    }
    labels = {key: value for key, value in call.labels.items() if key != REFERENCE}  # a user's words
    optional = {
        "trace_id": call.trace.trace_id if call.trace is not None else "",
        "client": call.client.id,
        "tenant": call.client.tenant if call.client.tenant != call.client.id else "",
        "error": error,
        "finish": call.finish,
        "prompt": call.prompt,
        "labels": labels,
    }
    line.update({key: value for key, value in optional.items() if value})
    if (decision := call.decision) is not None:
        line["adapter"], line["version"] = decision.answered_by
        if decision.mixture:
            line["mixture"] = list(map(str, decision.mixture))
        line["reason"] = decision.reason.value
        line["confidence"] = round(decision.confidence, 4)
        line["classifier"] = decision.classifier
        line["route_seconds"] = round(decision.latency, 6)
        if decision.experiment:
            line["experiment"], line["arm"] = decision.experiment, decision.arm
    if (usage := call.usage) is not None:
        line["prompt_tokens"] = usage.prompt_tokens
        line["cached_tokens"] = usage.cached_tokens
        line["completion_tokens"] = usage.completion_tokens
        line["queue_seconds"] = round(usage.queue_time, 6)
        line["first_token_seconds"] = round(usage.time_to_first_token, 6)
    return line
