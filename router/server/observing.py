"""What is told of a call when it has ended: one log line, metrics, and its trace where it has one."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from router.errors import BodyIncomplete, RouterError
from router.judging import REFERENCE
from router.server.call import Answered, Call
from router.server.logs import ACCESS_LOG, Sparse
from router.server.metrics import Metrics
from router.server.status import code_of, http_status
from router.server.tracing import Tracing

access_log = logging.getLogger(ACCESS_LOG)
LEVELS = {"INTERNAL": logging.ERROR, "DATA_LOSS": logging.ERROR, "UNAVAILABLE": logging.WARNING}
HTTP = "http"


@contextmanager
def observed(call: Call, metrics: Metrics, lines: Sparse, tracing: Tracing) -> Iterator[None]:
    """One log line, the metrics and the trace of the call, however it ends; before its status leaves the
    server."""
    code, reason, bound = "OK", "", ""
    outcome = ""  # of the request, where it is another than the call's
    try:
        yield
    except asyncio.CancelledError:
        code = "DEADLINE_EXCEEDED" if call.expired else "CANCELLED"
        raise
    except Answered:
        code = "UNKNOWN"
        raise
    except Exception as error:
        code = code_of(error)
        reason = error.reason if isinstance(error, RouterError) else type(error).__name__
        if isinstance(error, RouterError) and (bound := error.metadata.get("bound", "")):
            metrics.shed.labels(bound).inc()
        if isinstance(error, BodyIncomplete):
            outcome = "CANCELLED"  # by its caller: no request came, and the server did not fail one
        raise
    finally:
        if call.transport == HTTP and not call.status:
            call.status = http_status(code, reason)
        metrics.record(call, code, outcome or code)
        if call.trace is not None:
            tracing.ended(call, outcome or code, reason)
        if call.policy.logged and (not bound or lines.next()):
            fields = log_fields(call, code, reason)
            if left_out := lines.left_out():
                fields["left_out"] = left_out
            access_log.log(LEVELS.get(code, logging.INFO), "request", extra={"fields": fields})


def log_fields(call: Call, code: str, error: str) -> dict[str, Any]:
    """What the log line of a call says; no text of prompt or answer unless the operator asked for it."""
    line: dict[str, Any] = {**call.ids, "transport": call.transport}
    if call.transport == HTTP:
        verb, _, path = call.method.partition(" ")
        line |= {"method": verb, "path": path, "status": call.status}
    else:
        line["method"] = call.method.rpartition("/")[2]
    line |= {
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
