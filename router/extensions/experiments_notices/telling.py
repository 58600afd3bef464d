"""From a report to notices on their way: who tells them, how many there were, and where they go."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from router.extensions.experiments_notices.notices import Notifier, claimed_notices

if TYPE_CHECKING:
    from router.config import Settings
    from router.experiments.report.model import Report
    from router.experiments.store.store import ExperimentStore


def notifier_of(settings: Settings) -> Notifier:
    """A notifier as the settings say. Raises ConfigError for a webhook that cannot work."""
    secret = settings.experiments_webhook_secret
    return Notifier(settings.experiments_webhook or "", secret.get_secret_value() if secret else "")


def telling(notifier: Notifier, store: ExperimentStore) -> Callable[[Report], None]:
    """What tells what a report calls for: it claims that, so that no other server tells it. It blocks, in a
    thread; make it on the event loop."""
    loop = asyncio.get_running_loop()

    def tell(report: Report) -> None:
        for notice in claimed_notices(store, report):
            loop.call_soon_threadsafe(notifier.tell, notice)

    return tell


class NoticeMetrics(Collector):
    """Counters of notices and of their deliveries."""

    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier

    def collect(self) -> Iterator[Metric]:
        """Everything as it is now."""
        told = CounterMetricFamily(
            "lora_router_experiment_notices", "Notices of experiments.", labels=("experiment", "event")
        )
        for key, value in tuple(self._notifier.told.items()):
            told.add_metric(key, value)
        deliveries = CounterMetricFamily(
            "lora_router_experiment_notice_deliveries",
            "Results of sending notices to the webhook.",
            labels=("result",),
        )
        for result, value in tuple(self._notifier.deliveries.items()):
            deliveries.add_metric((result,), value)
        yield from (told, deliveries)
