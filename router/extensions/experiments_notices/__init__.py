"""Notices of experiments: a metric, a log line, and a signed webhook at `experiments_webhook`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.built_in import has_experiments
from router.hookspecs import hookimpl

if TYPE_CHECKING:
    from router.experiments.runtime import LiveExperiments
    from router.extensions.experiments_notices.notices import Notifier
    from router.server.app import ServerApp


class Plugin:
    """The notices of one server.

    It observes reports in the thread of a look, and not by `on_report`: so what is claimed is sent, also
    where the server ends.
    """

    def __init__(self) -> None:
        self._notifier: Notifier | None = None
        self._served: LiveExperiments | None = None

    @hookimpl
    async def on_startup(self, server: ServerApp) -> None:
        """Get ready to send. Raises ConfigError where notices cannot be sent."""
        if not has_experiments():
            return
        from router.experiments.runtime import LiveExperiments
        from router.extensions.experiments_notices.notices import NoticeMetrics, notice_observer, notifier_of

        notifier = notifier_of(server.settings)
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
