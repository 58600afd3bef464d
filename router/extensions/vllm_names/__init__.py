"""Metrics under vLLM's names, which endpoint pickers of gateways read (`vllm_names.metrics`).

A picker sends a request that names an adapter to a server that has it, by `vllm:lora_requests_info`: its
newest series wins, so there is one, and it names every version in memory, whether or not it answers just now.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Literal

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from pydantic import BaseModel, ConfigDict, Field

from router.engine.base import EngineStatus
from router.hookspecs import RegisterSettings
from router.markers import hookimpl
from router.types import AdapterInfo, AdapterRef, AdapterState

if TYPE_CHECKING:
    from router.server.app import ServerApp


class VllmNamesSettings(BaseModel):
    """The table [vllm_names]."""

    model_config = ConfigDict(frozen=True)

    metrics: Literal["none", "vllm"] = Field(
        "none", description="names that gateways' endpoint pickers read, beside our own: vllm, or none"
    )


@hookimpl
def register_settings(register: RegisterSettings) -> None:
    """`[vllm_names]`."""
    register(VllmNamesSettings)


@hookimpl
async def on_startup(server: ServerApp, settings: VllmNamesSettings) -> None:
    """Show them beside our own."""
    if settings.metrics != "vllm":
        return
    names, states = VllmNames(), server.metrics.states

    def update() -> None:
        loading = (ref for ref, state in states.items() if state is AdapterState.LOADING)
        names.look(server.engine.status(), server.registry.resident(), loading)

    server.metrics.registry.register(names)
    server.metrics.updates.append(update)


class VllmNames(Collector):
    """As of the last `look`, which runs on the event loop; `collect` anywhere."""

    def __init__(self) -> None:
        self._status = EngineStatus()
        self._resident: tuple[str, ...] = ()
        self._loading: tuple[str, ...] = ()

    def look(
        self, status: EngineStatus, resident: Iterable[AdapterInfo], loading: Iterable[AdapterRef]
    ) -> None:
        """Remember what is in memory, and what is on its way there."""
        self._status = status
        self._resident = tuple(sorted(name_of(info.ref, info.default) for info in resident))
        self._loading = tuple(sorted(map(str, loading)))

    def collect(self) -> Iterator[Metric]:
        """The five that a picker knows."""
        status = self._status
        used = 1 - status.cache_blocks_free / status.cache_blocks if status.cache_blocks else 0.0
        yield GaugeMetricFamily("vllm:num_requests_running", "Requests in the batch.", status.running)
        yield GaugeMetricFamily("vllm:num_requests_waiting", "Requests that wait.", status.waiting)
        yield GaugeMetricFamily("vllm:kv_cache_usage_perc", "Part of the KV cache in use, 0 to 1.", used)
        cache = GaugeMetricFamily(
            "vllm:cache_config_info", "Size of the KV cache.", labels=("block_size", "num_gpu_blocks")
        )
        cache.add_metric((str(status.block_size), str(status.cache_blocks)), 1)
        yield cache
        adapters = GaugeMetricFamily(
            "vllm:lora_requests_info",
            "Adapters in memory and on their way there; the value is the time.",
            labels=("max_lora", "running_lora_adapters", "waiting_lora_adapters"),
        )
        most = max(status.slots, len(self._resident))  # who is in host memory alone needs no slot yet
        adapters.add_metric((str(most), ",".join(self._resident), ",".join(self._loading)), time.time())
        yield adapters


def name_of(ref: AdapterRef, default: bool) -> str:
    """As a request over HTTP names it in `model`."""
    return ref.name if default else str(ref)
