"""Experiments that run in a server on the fakes, and looks at what they left in the store."""

from __future__ import annotations

import asyncio
from typing import Any

from router.extensions.experiments.model import Experiment, Exposure, Spec
from router.extensions.experiments.runtime import LiveExperiments
from router.v1 import inference_pb2 as pb
from tests.extensions.experiments.made import SPEC, experiment
from tests.extensions.experiments.memory_store import MemoryStore
from tests.server.helpers import ask

WORDS = "medical one two"  # the fake router sends it to the adapter medical
UNITS = [f"user-{i}" for i in range(24)]


async def live_on(store: MemoryStore, **options: Any) -> LiveExperiments:
    """Started; not closed by itself."""
    made = LiveExperiments(store, poll_seconds=0.02, look_seconds=1000, **options)
    await made.start()
    return made


def trial(spec: Spec = SPEC, name: str = "trial", **fields: Any) -> Experiment:
    return experiment(name, spec, **fields)


def of_unit(unit: str, text: str = WORDS, **fields: Any) -> pb.GenerateRequest:
    return ask(text, routing={"unit": unit, **fields.pop("routing", {})}, **fields)


def exposures(store: MemoryStore, name: str = "trial", phase: int = 1) -> dict[str, Exposure]:
    """By response id."""
    return store.rows[name, phase].exposures


def values(store: MemoryStore, response_id: str) -> dict[str, float]:
    """Outcomes of a response, by metric."""
    kept = [k.outcome for k in store.outcomes.values()]
    return {o.metric: o.value for o in kept if o.response_id == response_id}


async def arms_of(server, units=UNITS) -> dict[str, tuple[str, str]]:
    """Unit -> arm and version that answered."""
    answers = await asyncio.gather(*(server.inference.Generate(of_unit(unit)) for unit in units))
    return {u: (a.decision.arm, a.decision.adapter) for u, a in zip(units, answers, strict=True)}
