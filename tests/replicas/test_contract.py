"""The contract of engines, kept by a fleet of fake ones in this process."""

from __future__ import annotations

from functools import partial

from router.engine.base import AdapterArtifact, Engine
from router.engine.fake import FakeEngine
from router.replicas.engine import FleetEngine
from router.replicas.membership import FixedMembership
from tests.engine.contract import CONTEXT, QUEUE, ROWS, EngineContract
from tests.engine.test_contract import fake_adapter
from tests.replicas.local import LocalLink


class TestFleetOfTwo(EngineContract):
    def make(self) -> Engine:
        limits = {"max_running": ROWS // 2, "max_queue": QUEUE // 2}
        fake = partial(FakeEngine, step_seconds=0.001, context_length=CONTEXT, **limits)
        return FleetEngine(FixedMembership([LocalLink(name, fake) for name in "01"]), FakeEngine, **limits)

    def artifact(self, engine: Engine, name: str, invocation: tuple[int, ...] = ()) -> AdapterArtifact:
        return fake_adapter(name, invocation)
