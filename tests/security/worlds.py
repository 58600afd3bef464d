"""A server with things of two tenants, and one with those of the first alone, for looks from outside."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from router.access.clients import hash_of, new_token
from router.engine.fake import FakeEngine
from router.extensions.experiments.model import ArmSpec, Kind, MetricSpec, Spec
from router.extensions.experiments.runtime import LiveExperiments
from router.feedback.recorder import FeedbackRecorder
from router.feedback.store import FeedbackStore
from router.types import AdapterRef
from router.v1 import experiments_pb2 as pb
from router.v1.feedback_pb2_grpc import FeedbackServiceStub
from tests.extensions.experiments.memory_store import MemoryStore
from tests.extensions.experiments.plans import plan
from tests.extensions.experiments.service.lab import create
from tests.fakes import FakeRegistry, FakeRouter, adapter
from tests.security.helpers import bearer
from tests.server.helpers import Connect, Start, ask

THEIRS = ("legal", "legal-eu")
LATER = 0.02  # seconds between looks at the store


def legal_plan(**fields: Any) -> Spec:
    """An experiment on the other tenant's adapter, whose metric is the first tenant's, too."""
    arms = (
        ArmSpec("old", 0.5, AdapterRef("legal", "2.0.0")),
        ArmSpec("new", 0.5, AdapterRef("legal", "2.1.0")),
    )
    return plan(route="legal", arms=arms, primary=MetricSpec("solved", Kind.PROPORTION), **fields)


def write_tenants(folder: Path, more: str = "") -> SimpleNamespace:
    """A clients file: `mine` and `second` of acme, `other` of bravo, `ops` who may know of all, `blind` of no
    experiment."""
    said = {
        "mine": ("acme", ["medical"], ["acme-*"]),
        "second": ("acme", ["medical"], ["acme-*"]),
        "other": ("bravo", ["legal*"], ["legal-*", "acme-hidden"]),
        "ops": ("ops", ["*"], ["*"]),
        "blind": ("blind", ["medical"], []),
    }
    tokens = {name: new_token(name) for name in said}
    path = folder / "clients.toml"
    path.write_text(
        "".join(
            f'[[client]]\nid = "{name}"\ntenant = "{tenant}"\ntoken_sha256 = ["{hash_of(tokens[name])}"]\n'
            f'roles = ["infer", "observe", "admin"]\nadapters = {adapters}\nexperiments = {experiments}\n'
            for name, (tenant, adapters, experiments) in said.items()
        )
        + more
    )
    return SimpleNamespace(path=path, **{name: bearer(token) for name, token in tokens.items()})


@asynccontextmanager
async def world(
    folder: Path, start_server: Start, connect: Connect, theirs: bool = True, more: str = "", **settings: Any
) -> AsyncIterator[SimpleNamespace]:
    """Stubs of a server on fakes, and metadata by client. acme has medical and acme-tone; where `theirs` is
    said, bravo has legal, legal-eu, legal-tone and an experiment in acme's names, acme-hidden."""
    engine, clients, store = FakeEngine(), write_tenants(folder, more), MemoryStore()
    infos = [adapter("medical"), adapter("medical", "1.1.0")]
    if theirs:
        infos += [adapter("legal", "2.0.0"), adapter("legal", "2.1.0"), adapter("legal-eu")]
    registry = FakeRegistry(engine, infos)
    live = LiveExperiments(store, poll_seconds=LATER)
    kept = folder / f"feedback-{theirs}"
    kept.mkdir(exist_ok=True)
    await live.start()
    try:
        app = await start_server(
            engine=engine,
            registry=registry,
            router=FakeRouter(registry),
            experiments=live,
            feedback=FeedbackRecorder(FeedbackStore.in_folder(kept), "texts", 90),
            clients=clients.path,
            **settings,
        )
        stubs = connect(app)
        made = SimpleNamespace(
            app=app, live=live, store=store, registry=registry, clients=clients, **vars(stubs)
        )
        made.feedback = FeedbackServiceStub(stubs.channel)
        await begun(made, "acme-tone", clients.mine)
        if theirs:
            await begun(made, "legal-tone", clients.other, **vars_of(legal_plan()))
            await begun(made, "acme-hidden", clients.other, start=False, **vars_of(legal_plan()))
        yield made
        await app.stop()
    finally:
        await live.close()


def vars_of(spec: Spec) -> dict[str, Any]:
    """What sets it apart from `plan()`."""
    return {"route": spec.route, "arms": spec.arms, "primary": spec.primary}


async def begun(
    at: SimpleNamespace, name: str, metadata: Sequence[tuple[str, str]], start: bool = True, **fields: Any
) -> None:
    """An experiment of a client, running unless said otherwise."""
    await at.experiments.CreateExperiment(create(name, **fields), metadata=metadata)
    if start:
        request = pb.StartExperimentRequest(name=f"experiments/{name}")
        await at.experiments.StartExperiment(request, metadata=metadata)


async def answered(at: SimpleNamespace, metadata: Sequence[tuple[str, str]], text: str, unit: str) -> Any:
    """An answer for a unit, its exposure durable."""
    answer = await at.inference.Generate(ask(text, routing={"unit": unit}), metadata=metadata)
    await at.live.recorder.flush()
    return answer
