"""Metrics by vLLM's names, which gateways' endpoint pickers read (setting `metrics_compat`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.hookspecs import hookimpl
from router.types import AdapterState

if TYPE_CHECKING:
    from router.server.app import ServerApp


@hookimpl
async def on_startup(server: ServerApp) -> None:
    """Show them beside our own."""
    if server.settings.metrics_compat != "vllm":
        return
    from router.extensions.vllm_names.names import VllmNames

    names, states = VllmNames(), server.metrics.states

    def update() -> None:
        loading = (ref for ref, state in states.items() if state is AdapterState.LOADING)
        names.look(server.engine.status(), server.registry.resident(), loading)

    server.metrics.registry.register(names)
    server.metrics.updates.append(update)
