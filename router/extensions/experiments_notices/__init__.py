"""Notices of experiments: a metric, a log line, and a signed webhook at `experiments_webhook`."""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from router import optional
from router.hookspecs import hookimpl

if TYPE_CHECKING:
    from router.experiments.report.model import Report
    from router.extensions.experiments_notices.telling import Telling
    from router.server.app import ServerApp

_telling: WeakKeyDictionary[ServerApp, Telling] = WeakKeyDictionary()


@hookimpl
async def on_startup(server: ServerApp) -> None:
    """Get ready to send. Raises ConfigError where notices cannot be sent."""
    if not optional.has_experiments():
        return
    from router.extensions.experiments_notices.telling import NoticeMetrics, Telling, notifier_of

    notifier = notifier_of(server.settings)
    if server.experiments is None:
        return
    notifier.start()
    _telling[server] = Telling(notifier)
    server.metrics.registry.register(NoticeMetrics(notifier))


@hookimpl
def on_report(report: Report, server: ServerApp) -> None:
    """Tell what the report calls for, once."""
    if server in _telling and server.experiments is not None:
        _telling[server].tell(server.experiments.store, report)


@hookimpl
async def on_shutdown(server: ServerApp) -> None:
    """Try once more what waits, for two seconds at most."""
    if server in _telling:
        await _telling.pop(server).notifier.close()
