"""Metrics by vLLM's names, which gateways' endpoint pickers read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from router.hookspecs import Formerly, RegisterSettings, hookimpl
from router.types import AdapterState

if TYPE_CHECKING:
    from router.server.app import ServerApp


class VllmNamesSettings(BaseModel):
    """The table [vllm_names]."""

    model_config = ConfigDict(frozen=True)

    metrics: Annotated[Literal["none", "vllm"], Formerly("metrics_compat")] = Field(
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
    from router.extensions.vllm_names.names import VllmNames

    names, states = VllmNames(), server.metrics.states

    def update() -> None:
        loading = (ref for ref, state in states.items() if state is AdapterState.LOADING)
        names.look(server.engine.status(), server.registry.resident(), loading)

    server.metrics.registry.register(names)
    server.metrics.updates.append(update)
