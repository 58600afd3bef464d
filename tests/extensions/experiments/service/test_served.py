"""What an operator sees of experiments: metrics and health."""

from __future__ import annotations

import asyncio
import logging
import threading

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import generate_latest

from router.access.clients import Client
from router.engine.fake import FakeEngine
from router.errors import AdapterNotFound, Unavailable
from router.extensions.experiments import service as served
from router.extensions.experiments.outcomes import StoreThreads
from router.extensions.experiments.service import RegistryOnLoop
from router.server.call import CURRENT
from router.server.policy import ADMIN
from router.types import AdapterRef, Visible
from tests.extensions.experiments.memory_store import MemoryStore
from tests.extensions.experiments.service.trials import live_on, of_unit, trial
from tests.fakes import FakeRegistry, adapter
from tests.server.helpers import call_of, until

SERVING, NOT_SERVING = 1, 2


def metrics(app) -> list[str]:
    text = generate_latest(app.metrics.registry).decode()
    return [line for line in text.splitlines() if line.startswith("lora_router_experiment")]


async def test_metrics(start_server, connect, fakes):
    store = MemoryStore()
    store.create(trial())
    live = await live_on(store)
    app = await start_server(**vars(fakes), experiments=live)
    arm = (await connect(app).inference.Generate(of_unit("ann"))).decision.arm
    await connect(app).inference.Generate(of_unit(""))
    await live.recorder.flush()
    found = metrics(app)
    assert f'lora_router_experiment_exposures_total{{arm="{arm}",experiment="trial"}} 1.0' in found
    assert 'lora_router_experiment_unit_missing_total{experiment="trial"} 1.0' in found
    assert "lora_router_experiments_running 1.0" in found
    assert "lora_router_experiment_queue 0.0" in found
    assert "lora_router_experiment_store_up 1.0" in found
    store.down = True
    await until(lambda: not live.availability.up)
    assert "lora_router_experiment_store_up 0.0" in metrics(app)
    store.down = False
    await live.close()


async def test_what_the_caller_may_not_know_of_is_not_there_for_its_plans():
    threads, registry = (
        StoreThreads(),
        RegistryOnLoop(
            FakeRegistry(FakeEngine(), [adapter("medical"), adapter("legal")]), asyncio.get_running_loop()
        ),
    )
    call = call_of("/router.v1.ExperimentService/StartExperiment", ADMIN)
    call.made_by(Client("a", adapters=Visible(("medical",)), tenant="a"))
    token = CURRENT.set(call)
    try:
        for ask in (registry.resolve, registry.get):
            assert (await threads.run(ask, "medical")).ref.name == "medical"
            with pytest.raises(AdapterNotFound):
                await threads.run(ask, "legal")
    finally:
        CURRENT.reset(token)
    assert (await threads.run(registry.get, "legal")).ref.name == "legal"  # no call: what runs by itself
    threads.close()


async def test_the_log_line_names_the_arm(start_server, connect, fakes, caplog):
    store = MemoryStore()
    store.create(trial())
    live = await live_on(store)
    app = await start_server(**vars(fakes), experiments=live)
    with caplog.at_level(logging.INFO, "router.server.access"):
        arm = (await connect(app).inference.Generate(of_unit("ann"))).decision.arm
        await connect(app).inference.Generate(of_unit("ann", "legal"))
    in_trial, beside = [record.fields for record in caplog.records if hasattr(record, "fields")]
    assert (in_trial["experiment"], in_trial["arm"]) == ("trial", arm)
    assert "experiment" not in beside
    await live.close()


async def test_without_experiments_there_are_no_such_metrics(server):
    assert metrics(server) == []


async def test_health_has_a_name_of_its_own(start_server, connect, fakes):
    store = MemoryStore()
    live = await live_on(store)
    app = await start_server(**vars(fakes), experiments=live, stall_seconds=0.04)
    stub = health_pb2_grpc.HealthStub(connect(app).channel)

    async def states() -> list[int]:
        names = ("", "router.v1.InferenceService", "router.v1.ExperimentService")
        replies = [await stub.Check(health_pb2.HealthCheckRequest(service=name)) for name in names]
        return [reply.status for reply in replies]

    assert await states() == [SERVING] * 3
    store.down = True
    await until(lambda: not live.availability.up)
    app.health.update()
    assert await states() == [SERVING, SERVING, NOT_SERVING]
    store.down = False
    await until(lambda: live.availability.up)
    app.health.update()
    assert await states() == [SERVING] * 3
    await live.close()


async def test_the_registry_is_called_on_the_loop() -> None:
    here, seen = threading.get_ident(), []

    class Registry(FakeRegistry):
        def resolve(self, name, version="", *more):
            seen.append(threading.get_ident())
            return super().resolve(name, version, *more)

    registry = Registry(None, [adapter("medical"), adapter("medical", "1.1.0")])
    remote = RegistryOnLoop(registry, asyncio.get_running_loop())
    info = await asyncio.to_thread(remote.resolve, "medical")
    assert (info.ref.version, seen) == ("1.0.0", [here])
    _, previous = await asyncio.to_thread(remote.set_default, AdapterRef("medical", "1.1.0"))
    assert previous == AdapterRef("medical", "1.0.0")


def test_a_loop_that_does_not_come_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "LOOP_SECONDS", 0.01)
    loop = asyncio.new_event_loop()  # nobody runs it
    with pytest.raises(Unavailable, match="did not come to it"):
        RegistryOnLoop(FakeRegistry(None), loop).resolve("medical")
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
