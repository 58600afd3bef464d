"""Default versions and quotas that several edges share in PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from router.hookspecs import RegisterCheck, RegisterSettings
from router.markers import hookimpl

if TYPE_CHECKING:
    from router.server.app import ServerApp
    from router.shared.state import SharedState


class SharingSettings(BaseModel):
    """The table [sharing]."""

    model_config = ConfigDict(frozen=True)

    enabled: bool = Field(
        False,
        description="share default versions and quotas with the other edges whose `database` is the "
        "same PostgreSQL database",
    )


@hookimpl
def register_settings(register: RegisterSettings) -> None:
    """`[sharing]`."""
    register(SharingSettings)


class Plugin:
    """What one server shares."""

    def __init__(self) -> None:
        self._state: SharedState | None = None

    @hookimpl
    def register_checks(self, register: RegisterCheck) -> None:
        """What is wrong with it."""
        register(self._flaws)

    @hookimpl
    def on_startup(self, server: ServerApp, settings: SharingSettings) -> None:
        """Join the others. Raises ConfigError."""
        if settings.enabled:
            from router.extensions.sharing.sharing import shared_state

            self._state = shared_state(server)

    @hookimpl
    async def on_load(self) -> None:
        """Read what the others have."""
        if self._state is not None:
            await self._state.start()

    @hookimpl
    async def on_shutdown(self) -> None:
        """Leave the others."""
        if self._state is not None:
            await self._state.close()

    def _flaws(self) -> Sequence[str]:
        return self._state.flaws if self._state is not None else ()
