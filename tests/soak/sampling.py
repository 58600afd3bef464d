"""One sample of a server process: what the system says of it, and what its metrics say."""

from __future__ import annotations

import time

import psutil
from prometheus_client.parser import text_string_to_metric_families

from tests.soak.server import Server

GAUGES = {
    "tasks": "lora_router_event_loop_tasks",
    "leases": "lora_router_adapter_leases",
    "slots": "lora_router_adapter_slots_used",
    "kv": "lora_router_kv_cache_usage_ratio",
    "lag_ms": "lora_router_event_loop_lag_seconds",
    "running": "lora_router_requests_running",
    "waiting": "lora_router_requests_waiting",
}


def sample(server: Server) -> dict[str, float]:
    """Now. Raises OSError where the server does not answer, KeyError where a metric is missing."""
    process = psutil.Process(server.process.pid)
    with process.oneshot():
        found = {
            "at": time.monotonic(),
            "rss_mb": process.memory_info().rss / 1e6,
            "threads": float(process.num_threads()),
        }
    found["fds"] = float(process.num_fds())
    values = {
        one.name: one.value
        for family in text_string_to_metric_families(server.scrape())
        for one in family.samples
        if one.name in GAUGES.values()
    }
    found |= {name: values[metric] for name, metric in GAUGES.items()}
    found["lag_ms"] *= 1000
    return found


def samples(server: Server, seconds: float, every: float = 1.0) -> list[dict[str, float]]:
    """One each `every` seconds for so long; one at least."""
    end = time.monotonic() + seconds
    found = [sample(server)]
    while time.monotonic() < end:
        time.sleep(every)
        found.append(sample(server))
    return found
