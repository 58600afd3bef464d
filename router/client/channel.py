"""Channel settings that both clients share: retries, deadlines, ids."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from typing import Any

DEFAULT_TARGET = "127.0.0.1:50051"
DEFAULT_TIMEOUT = 60.0
MAX_MESSAGE_BYTES = 16 * 1024 * 1024

# gRPC retries a call only until its response headers arrive, so a stream that began is never repeated.
RETRY = {
    "maxAttempts": 4,
    "initialBackoff": "0.1s",
    "maxBackoff": "2s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}
SERVICE_CONFIG = {
    "methodConfig": [
        {"name": [{"service": "router.v1.InferenceService"}], "retryPolicy": RETRY},
        {
            "name": [
                {"service": "router.v1.AdapterService", "method": method}
                for method in ("ListAdapters", "GetAdapter", "LoadAdapter", "UnloadAdapter")
            ],
            "retryPolicy": RETRY,
        },
        {
            "name": [
                {"service": "router.v1.ExperimentService", "method": method}
                for method in (
                    "GetExperiment",
                    "ListExperiments",
                    "StartExperiment",
                    "GetReport",
                    "RecordOutcome",
                )
            ],
            "retryPolicy": RETRY,
        },
    ],
    "retryThrottling": {"maxTokens": 10, "tokenRatio": 0.1},
}


def is_loopback(target: str) -> bool:
    """Whether a HOST:PORT target stays on this machine."""
    host = target.rpartition(":")[0].strip("[]")
    return host in ("localhost", "::1") or host.startswith("127.")


def channel_options(target: str) -> list[tuple[str, Any]]:
    """Options of the channel. A proxy from the environment is never asked for the own machine."""
    options: list[tuple[str, Any]] = [
        ("grpc.service_config", json.dumps(SERVICE_CONFIG)),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
    ]
    if is_loopback(target):
        options.append(("grpc.enable_http_proxy", 0))
    return options


def call_settings(options: Mapping[str, Any], default_timeout: float | None) -> dict[str, Any]:
    """Timeout and metadata of one call; the request id is the caller's or a new one."""
    request_id = options.get("request_id") or uuid.uuid4().hex
    return {
        "timeout": options.get("timeout", default_timeout),
        "metadata": (("x-request-id", request_id),),
    }


def request_id_of(settings: Mapping[str, Any]) -> str:
    """The id that `call_settings` chose."""
    return str(settings["metadata"][0][1])
