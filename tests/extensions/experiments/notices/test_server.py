"""Notices of a whole server."""

from __future__ import annotations

import threading
import time

import pytest
from prometheus_client import generate_latest

from router.errors import ConfigError
from router.extensions.experiments.notices import verify
from router.extensions.experiments.report.model import ArmReport, Report
from tests.extensions.experiments.compose.test_compose import serve
from tests.extensions.experiments.made import experiment
from tests.extensions.experiments.notices.receiving import receiving
from tests.extensions.experiments.test_guardian import BETTER

__all__ = ["serve"]

pytestmark = pytest.mark.slow

SECRET = "s3cret"


async def test_a_webhook_is_told_by_the_whole_server(serve, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    with receiving() as receiver:
        said = {"experiments.webhook": receiver.url, "experiments.webhook_secret": SECRET}
        composition, stop = await serve(**said)
        of = experiment()
        composition.app.pipeline.experiments.store.create(of)
        arm = ArmReport("new", BETTER, None)
        for observer in composition.app.pipeline.experiments.guardian.observers:
            observer(Report(of, 1, BETTER, "new", (arm,), (), (), (), (), (), 50.0))
        await stop()
        ((_, headers, body),) = receiver.got
    assert verify(SECRET, headers["Lora-Router-Signature"], body, time.time())
    shown = generate_latest(composition.app.metrics.registry).decode()
    told = 'event="may-be-promoted",experiment="trial"'
    assert f"lora_router_experiment_notices_total{{{told}}} 1.0" in shown
    for result, times in {"delivered": 1.0, "failed": 0.0, "dropped": 0.0, "retried": 0.0}.items():
        assert f'lora_router_experiment_notice_deliveries_total{{result="{result}"}} {times}' in shown


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            {"experiments.webhook": "ftp://somewhere/x"},
            ".webhook must begin with https",
        ),
        ({"experiments.webhook": "nowhere"}, "is no URL with a host"),
        ({"experiments.webhook_secret": SECRET}, "set both"),
    ],
)
async def test_a_webhook_that_cannot_work_stops_the_start_and_names_no_secret(serve, said, told):
    before = set(threading.enumerate())
    with pytest.raises(ConfigError, match=told) as caught:
        await serve(**said)
    assert SECRET not in caught.value.message
    assert not [thread for thread in set(threading.enumerate()) - before if "experiments" in thread.name]
