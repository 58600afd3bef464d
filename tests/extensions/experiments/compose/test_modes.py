"""Shadow arms of a whole server: all is real but the engine."""

import asyncio
import dataclasses
import time
from pathlib import Path

import pytest

from router.cli.compose import Composition
from router.client import AsyncClient
from router.config import Settings
from router.engine.fake import FakeEngine
from router.extensions.experiments.model import (
    ArmSpec,
    Experiment,
    ExperimentPhase,
    Kind,
    Lifecycle,
    MetricSpec,
    Mode,
    Spec,
)
from router.types import AdapterRef
from tests.cli.tiny import MODULES, write_adapter

pytestmark = pytest.mark.slow

OLD, NEW = AdapterRef("medical", "1.2.0"), AdapterRef("medical", "1.3.0")
MANIFEST = """
[adapter]
name = "medical"
version = "{version}"
domain = "medicine"
"""
MILD = """
from router import hookimpl
from router.routing import Classifier, Scores

class Mild(Classifier):
    name = "mild"
    def classify_batch(self, requests):
        return [Scores({"medical": 0.7}) for r in requests]

@hookimpl
def register_classifiers(register):
    register(Mild(), timeout_ms=2000)
"""
SPEC = Spec(
    hypothesis="the old one was better",
    route="medical",
    arms=(ArmSpec("control", 0.5, NEW), ArmSpec("old", 0.5, OLD)),
    control="control",
    primary=MetricSpec("success", Kind.PROPORTION),
)


@pytest.fixture
async def running(own_folder, monkeypatch):
    """A composition that is serving two versions of an adapter."""
    monkeypatch.setenv("XDG_STATE_HOME", str(own_folder / "state"))
    for ref, b in ((OLD, 0.25), (NEW, 0.5)):
        write_adapter(own_folder / "adapters" / str(ref), b, manifest=MANIFEST.format(version=ref.version))
    (own_folder / "plugins").mkdir()
    (own_folder / "plugins" / "mild.py").write_text(MILD)
    engine = FakeEngine()
    engine._info = dataclasses.replace(engine._info, sites=MODULES, vocab_size=32)
    settings = Settings(
        listen="127.0.0.1:0",
        metrics_listen="",
        adapters_dir=(Path("adapters"),),
        plugins_dir=(Path("plugins"),),
        drain_seconds=2,
        gate="off",
    )
    composition = Composition(settings, engine)
    ready = asyncio.Event()
    task = asyncio.create_task(composition.run(lambda app: ready.set()))
    await asyncio.wait({task, asyncio.ensure_future(ready.wait())}, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        task.result()
    yield composition
    composition.app.request_stop()
    await task


@pytest.fixture
async def client(running):
    async with AsyncClient(running.app.address, timeout=20) as made:
        yield made


async def started(running: Composition, spec: Spec, age: float = 0.0):
    """The store, with the experiment running since `age` seconds."""
    live = running.app.pipeline.experiments
    phase = ExperimentPhase(1, time.time() - age, "enrolment", "variant", spec)
    live.store.create(Experiment("trial", spec, Lifecycle.RUNNING, (phase,)))
    await live.refresh()
    return live.store


async def eventually(condition, seconds: float = 20.0):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it never came true"
        await asyncio.sleep(0.02)
    return found


async def test_a_shadow_answers_beside_and_is_logged(running, client):
    store = await started(running, dataclasses.replace(SPEC, mode=Mode.SHADOW))
    await running.registry.load(OLD)
    answer = await client.generate("which chapter", max_tokens=8, unit="ann")
    assert answer.decision.adapter is not None
    assert (str(answer.decision.adapter), answer.decision.experiment) == ("medical@1.3.0", "")
    counts = running.app.pipeline.experiments.counts.shadows
    await eventually(lambda: counts["trial", "old", "different"] == 1)
    assert store.data("trial", 1).buckets == ()


async def test_a_shadow_is_dropped_when_requests_need_its_row(running, client):
    await started(running, dataclasses.replace(SPEC, mode=Mode.SHADOW))
    await running.registry.load(OLD)
    running.app.engine.max_running = 1
    answer = await client.generate("which chapter", max_tokens=8, unit="ann")
    assert str(answer.decision.adapter) == "medical@1.3.0"
    counts = running.app.pipeline.experiments.counts.shadows
    await eventually(lambda: counts["trial", "old", "load"])
    assert set(counts) == {("trial", "old", "load")}
