"""The contract of engines, kept by a fleet of fake ones in this process."""

from __future__ import annotations

from functools import partial

from router.engine.base import AdapterArtifact, Engine
from router.engine.fake import FakeEngine
from router.replicas.engine import FleetEngine
from tests.engine.contract import CONTEXT, QUEUE, ROWS, EngineContract
from tests.engine.test_contract import fake_adapter
from tests.replicas.local import LocalLink


class TestFleetEngine(EngineContract):
    replicas = 1

    def make(self) -> Engine:
        rows, queue = ROWS // self.replicas, QUEUE // self.replicas
        fake = partial(
            FakeEngine, step_seconds=0.001, max_running=rows, max_queue=queue, context_length=CONTEXT
        )
        links = [LocalLink(str(number), fake) for number in range(self.replicas)]
        return FleetEngine(links, FakeEngine, max_running=rows, max_queue=queue)

    def artifact(self, engine: Engine, name: str, invocation: tuple[int, ...] = ()) -> AdapterArtifact:
        return fake_adapter(name, invocation)


class TestFleetOfTwo(TestFleetEngine):
    replicas = 2
