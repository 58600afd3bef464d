"""Where a server keeps its experiments, and one from plan to report through everything that is composed."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from router.cli.compose import Composition
from router.client import AsyncClient, ClientError
from router.config import Settings
from router.engine.fake import FakeEngine
from router.errors import ConfigError
from router.extensions.experiments import store_of
from router.extensions.experiments.client import AsyncExperiments
from router.extensions.experiments.model import ArmSpec, Kind, MetricSpec, Spec
from router.registry.state import state_dir
from tests.settings import settings_of

pytestmark = pytest.mark.slow

SPEC = Spec(
    hypothesis="none",
    route="base",
    arms=(ArmSpec("control", 0.5), ArmSpec("same", 0.5)),
    control="control",
    primary=MetricSpec("liked", Kind.PROPORTION),
    equal_arms=True,
)


def settings(folder: Path, **said) -> Settings:
    (folder / "adapters").mkdir(exist_ok=True)
    return settings_of(
        **{
            "listen": "127.0.0.1:0",
            "metrics_listen": "",
            "adapters_dir": (folder / "adapters",),
            "load_plugins": "",
            "drain_seconds": 2,
            **said,
        }
    )


def test_without_a_url_it_is_a_file_beside_the_other_state_the_same_at_every_start(tmp_path):
    state = state_dir((tmp_path / "adapters",), tmp_path / "state")
    for _ in range(2):
        store = store_of("", state)
        assert store is not None
        store.close()
    (found,) = (tmp_path / "state").rglob("experiments.db")
    assert found.parent.parent.name == "registry"


def test_a_state_folder_that_cannot_be_written_stops_no_server(tmp_path, caplog):
    (tmp_path / "state").write_text("a file")
    assert store_of("", tmp_path / "state") is None
    assert "experiments are off: the store's folder" in caplog.text


def test_a_url_that_cannot_work_stops_the_start(tmp_path):
    with pytest.raises(ConfigError, match="known are"):
        store_of("oracle://somewhere/db", tmp_path)


@pytest.fixture
def serve(tmp_path, monkeypatch):
    """`await serve(**settings)`: a composition that serves; stopped at the end by `await stop()`."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)

    async def start(**said):
        composition = Composition(settings(tmp_path, **said), FakeEngine())
        ready = asyncio.Event()
        task = asyncio.create_task(composition.run(lambda app: ready.set()))
        await asyncio.wait({task, asyncio.ensure_future(ready.wait())}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()

        async def stop() -> None:
            composition.app.request_stop()
            await task

        return composition, stop

    return start


async def test_from_plan_to_report_over_two_lives_of_a_server(serve):
    composition, stop = await serve()
    async with AsyncClient(composition.app.address, timeout=10) as client:
        await AsyncExperiments(client).create("same", SPEC)
        await AsyncExperiments(client).start("same")
        answers = [await client.generate("hello", max_tokens=3, unit=f"user-{i}") for i in range(12)]
    arms = {a.decision.arm for a in answers}
    assert arms == {"control", "same"}
    assert {a.decision.experiment for a in answers} == {"same"}
    await stop()

    composition, stop = await serve()
    async with AsyncClient(composition.app.address, timeout=10) as client:
        again = [await client.generate("hello", max_tokens=3, unit=f"user-{i}") for i in range(12)]
        assert [a.decision.arm for a in again] == [a.decision.arm for a in answers]
        await composition.app.pipeline.experiments.recorder.flush()
        report = await AsyncExperiments(client).report("same")
    assert sum(n.units for n in report.numbers) == 12
    assert sum(n.responses for n in report.numbers) == 24
    assert not [check.name for check in report.checks if check.failed]
    await stop()


async def test_off_says_how_to_turn_it_on(serve):
    composition, stop = await serve(**{"experiments.enabled": False})
    assert composition.app.pipeline.experiments is None
    async with AsyncClient(composition.app.address, timeout=10) as client:
        with pytest.raises(ClientError, match="experiments are off"):
            await AsyncExperiments(client).list()
        assert (await client.generate("hello", max_tokens=3)).decision.experiment == ""
    await stop()
