"""Notices of experiments: a metric, a log line, and a signed webhook."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from router.built_in import has_experiments
from router.hookspecs import RegisterSettings
from router.markers import hookimpl

if TYPE_CHECKING:
    from router.experiments.runtime import LiveExperiments
    from router.extensions.experiments_notices.notices import Notifier
    from router.server.app import ServerApp


class NoticeSettings(BaseModel):
    """The table [experiments_notices]."""

    model_config = ConfigDict(frozen=True)

    webhook: str = Field(
        "", description="URL that is called when an experiment may be promoted, harms or breaks; empty: none"
    )
    secret: SecretStr | None = Field(
        None, description="secret that signs messages to the webhook; is never shown"
    )


@hookimpl
def register_settings(register: RegisterSettings) -> None:
    """`[experiments_notices]`."""
    register(NoticeSettings)


class Plugin:
    """The notices of one server.

    It observes reports in the thread of a look, and not by `on_report`: so what is claimed is sent, also
    where the server ends.
    """

    def __init__(self) -> None:
        self._notifier: Notifier | None = None
        self._served: LiveExperiments | None = None

    @hookimpl
    async def on_startup(self, server: ServerApp, settings: NoticeSettings) -> None:
        """Get ready to send. Raises ConfigError where notices cannot be sent."""
        if not has_experiments():
            return
        from router.experiments.runtime import LiveExperiments
        from router.extensions.experiments_notices.notices import NoticeMetrics, Notifier, notice_observer

        secret = settings.secret.get_secret_value() if settings.secret is not None else ""
        notifier = Notifier(settings.webhook, secret)
        if isinstance(server.experiments, LiveExperiments):
            notifier.start()
            self._notifier, self._served = notifier, server.experiments
            self._served.guardian.observers.append(notice_observer(notifier, self._served.store))
            server.metrics.registry.register(NoticeMetrics(notifier))

    @hookimpl
    async def on_shutdown(self) -> None:
        """No look any more; try once more what waits, for seconds at most."""
        if self._served is not None and self._notifier is not None:
            await self._served.guardian.rest()
            await self._notifier.close()
