"""What tests of ExperimentService share: a server with experiments, plans as messages, answers with units."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

from router.extensions.experiments.messages import plan_message
from router.extensions.experiments.runtime import LiveExperiments
from router.v1 import experiments_pb2 as pb
from router.v1 import inference_pb2
from tests.extensions.experiments.plans import plan
from tests.fakes import adapter
from tests.server.helpers import Connect, Start, ask, details, failure

NAME = "experiments/trial"


@asynccontextmanager
async def experimenting(
    store: Any, fakes: SimpleNamespace, start_server: Start, connect: Connect, **options: Any
) -> AsyncIterator[SimpleNamespace]:
    """Stubs to a server on `fakes` with experiments in `store`; medical has the versions 1.0.0 and 1.1.0."""
    fakes.registry.put(adapter("medical", "1.1.0"))
    live = LiveExperiments(store, poll_seconds=60.0, **options)
    await live.start()
    try:
        app = await start_server(**vars(fakes), experiments=live)
        stubs = connect(app)
        yield SimpleNamespace(**vars(stubs), app=app, live=live, store=store, registry=fakes.registry)
        await app.stop()
    finally:
        await live.close()


def create(name: str = "trial", **fields: Any) -> pb.CreateExperimentRequest:
    """Of a good plan with `fields` changed."""
    return pb.CreateExperimentRequest(experiment_id=name, experiment=plan_message(plan(**fields)))


async def running(stubs: SimpleNamespace, name: str = "trial", **fields: Any) -> pb.Experiment:
    """A running experiment."""
    await stubs.experiments.CreateExperiment(create(name, **fields))
    started = await stubs.experiments.StartExperiment(pb.StartExperimentRequest(name=f"experiments/{name}"))
    return started.experiment


async def answer(stubs: SimpleNamespace, unit: str) -> inference_pb2.GenerateResponse:
    """An answer for a unit on the route, its exposure durable."""
    response = await stubs.inference.Generate(ask("a medical question", routing={"unit": unit}))
    await stubs.live.recorder.flush()
    return response


async def refused(call: Any, code: str) -> dict[str, Any]:
    seen = await failure(call)
    assert seen.code().name == code, seen.details()
    return {"text": seen.details(), **details(seen)}


def fields_of(found: dict[str, Any]) -> list[str]:
    return [v.field for v in found["BadRequest"].field_violations]
