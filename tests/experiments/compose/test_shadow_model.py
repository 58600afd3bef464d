"""Shadow arms on a model: the same answer for the user, and a pair judged by the base itself."""

import asyncio
import shutil
import time
from pathlib import Path

import pytest

from router.cli.compose import Composition
from router.client import AsyncClient
from router.config import Settings
from router.engine.loader import LoadedModel
from router.engine.torch_engine import TorchEngine
from router.experiments.model import (
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
from tests.engine import tiny

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[3]
PROMPT = "Which court hears an appeal against a fine?"


@pytest.fixture
async def running(own_folder, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(own_folder / "state"))
    tiny.save_adapter("llama", own_folder / "adapters" / "legal", seed=1)
    (own_folder / "plugins").mkdir()
    shutil.copy(ROOT / "plugins" / "judges.py", own_folder / "plugins")
    settings = Settings(
        listen="127.0.0.1:0",
        metrics_listen="",
        adapters_dir=(Path("adapters"),),
        plugins_dir=(Path("plugins"),),
        drain_seconds=2,
        gate="off",
        dtype="float32",
        device="cpu",
        cache_tokens=2048,
        native=False,
    )
    engine = TorchEngine(settings, LoadedModel(tiny.model("llama"), tiny.tokenizer(), "llama"))
    composition = Composition(settings, engine)
    ready = asyncio.Event()
    task = asyncio.create_task(composition.run(lambda app: ready.set()))
    await asyncio.wait({task, asyncio.ensure_future(ready.wait())}, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        task.result()
    yield composition
    composition.app.request_stop()
    await task


async def test_the_base_judges_its_own_answer_and_an_adapters(running):
    version = running.registry.resolve("legal").ref.version
    arms = (ArmSpec("base", 0.5), ArmSpec("legal", 0.5, AdapterRef("legal", version)))
    spec = Spec(
        hypothesis="legal answers in the base's manner",
        route="base",
        arms=arms,
        control="base",
        primary=MetricSpec("success", Kind.PROPORTION),
        mode=Mode.SHADOW,
        judge="likelihood",
    )
    live = running.app.experiments
    async with AsyncClient(running.app.address, timeout=120) as client:
        before = await client.generate(PROMPT, max_tokens=24)
        phase = ExperimentPhase(1, time.time(), "enrolment", "variant", spec)
        live.store.create(Experiment("manner", spec, Lifecycle.RUNNING, (phase,)))
        await live.refresh()
        await running.registry.load(AdapterRef("legal", version))
        answer = await client.generate(PROMPT, max_tokens=24)
    assert answer.text == before.text
    counts, end = live.counts.shadows, time.monotonic() + 60
    while not counts["manner", "legal", "judged"]:
        assert time.monotonic() < end, counts
        await asyncio.sleep(0.05)
    await live.recorder.flush()
    wins, losses, ties = live.store.paired("manner", 1)["legal"]
    assert (
        wins == 0
    )  # this adapter: the base holds its own answer likelier, as most often after greedy decoding
    assert losses + ties == 1
    assert running.plugins.judges()["likelihood"].status().errors == 0
