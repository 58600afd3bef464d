"""One log line and the metrics of every call, however it ends."""

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
from router.server.interceptors.call import Call
from router.server.metrics import Metrics
from router.server.status import code_of

log = logging.getLogger("router.server.access")
GENERATIONS = {"/router.v1.InferenceService/Generate", "/router.v1.InferenceService/StreamGenerate"}
LEVELS = {"INTERNAL": logging.ERROR, "DATA_LOSS": logging.ERROR, "UNAVAILABLE": logging.WARNING}


class Observer:
    """Knows how a call ended before its status leaves the server."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    @contextmanager
    def observed(self, call: Call, logged: bool) -> Iterator[None]:
        """Record what happens inside; never changes it."""
        code, reason = "OK", ""
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
            raise
        finally:
            self._metrics.record(call, code, generation=call.method in GENERATIONS)
            if logged:
                log.log(
                    LEVELS.get(code, logging.INFO), "request", extra={"fields": fields(call, code, reason)}
                )


def fields(call: Call, code: str, error: str) -> dict[str, Any]:
    """What the log line of a call says; no text of prompt or answer unless the operator asked for it."""
    line: dict[str, Any] = {
        **call.ids,
        "method": call.method.rpartition("/")[2],
        "code": code,
        "seconds": round(time.monotonic() - call.started, 6),
    }
    labels = {key: value for key, value in call.labels.items() if key != REFERENCE}  # a user's words
    optional = {"error": error, "finish": call.finish, "prompt": call.prompt, "labels": labels}
    line.update({key: value for key, value in optional.items() if value})
    if (decision := call.decision) is not None:
        line["adapter"] = decision.adapter.name if decision.adapter else "base"
        line["version"] = decision.adapter.version if decision.adapter else ""
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
