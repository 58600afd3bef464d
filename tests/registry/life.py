"""What lifecycle tests share: an engine that only keeps books, folders that differ, and waiting."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from router.engine.base import (
    AdapterArtifact,
    BaseInfo,
    Delta,
    EngineStatus,
    Finished,
    Generation,
    Job,
    Prompt,
)
from router.errors import ResourceExhausted
from router.types import AdapterRef, AdapterState, FinishReason
from tests.registry.tiny import BASE, lora_tensors, safetensors, write_adapter

BASE_ANSWER = "the base says so"
SIZE = 5_000  # bytes of any adapter in memory: a little more than on disk


class StubGeneration:
    """One answer in two pieces."""

    def __init__(self, engine: StubEngine, job: Job) -> None:
        self._engine, self._job = engine, job

    def __aiter__(self) -> AsyncIterator[Delta | Finished]:
        return self._events()

    async def _events(self) -> AsyncIterator[Delta | Finished]:
        await self._engine.answering.wait()
        text = self._engine.answer(self._job.adapter)
        yield Delta(text[:3])
        yield Delta(text[3:])
        yield Finished(FinishReason.STOP)

    def cancel(self) -> None:
        self._engine.cancelled += 1


class StubEngine:
    """Holds digests; says "I am NAME" with an adapter of that name. Fails the test on what must not be."""

    def __init__(self, capacity: int = 1 << 30) -> None:
        self.capacity, self.held = capacity, dict[str, AdapterArtifact]()
        self.in_use: Callable[[str], bool] = lambda digest: False
        self.loads, self.unloads, self.jobs = list[str](), list[str](), list[Job]()
        self.answers, self.faults = dict[str, str](), dict[str, Exception]()
        self.answering, self.loading = asyncio.Event(), asyncio.Event()
        self.answering.set()
        self.loading.set()
        self.cancelled = 0

    @property
    def info(self) -> BaseInfo:
        return BASE

    def start(self) -> None: ...

    def close(self) -> None: ...

    def encode(self, prompt: Prompt, most: int | None = None, check: Any = None) -> list[int]:
        return list(prompt.turns[-1].text.encode())

    async def load(self, artifact: AdapterArtifact) -> int:
        self.loads.append(artifact.name)
        await self.loading.wait()
        await asyncio.sleep(0)
        if fault := self.faults.get(artifact.name):
            raise fault
        if SIZE * (len(self.held) + 1) > self.capacity:
            raise ResourceExhausted("no memory")
        assert artifact.digest not in self.held, "loaded twice"
        self.held[artifact.digest] = artifact
        return SIZE

    async def unload(self, digest: str) -> int:
        assert not self.in_use(digest), "unloaded under a lease"
        await asyncio.sleep(0)
        assert not self.in_use(digest), "leased while it was unloaded"
        self.unloads.append(self.held.pop(digest).name)
        return SIZE

    def submit(self, job: Job) -> Generation:
        assert job.adapter is None or job.adapter in self.held
        self.jobs.append(job)
        return StubGeneration(self, job)

    def answer(self, adapter: str | None) -> str:
        if adapter is None:
            return BASE_ANSWER
        name = self.held[adapter].name
        return self.answers.get(name, f"I am {name}")

    def status(self) -> EngineStatus:
        return EngineStatus(device_adapters=tuple(self.held)[:1])


def weights(value: float) -> bytes:
    """Different bytes for each value, all of one length."""
    return safetensors({name: (t * value).astype("<f4") for name, t in lora_tensors().items()})


def drop(root: Path, name: str, version: str = "", value: float = 1.0, **more: Any) -> Path:
    """An adapter folder as an operator copies it in; `folder`, `description`, `expect` and the number of
    routing `examples` may be given."""
    folder = root / more.get("folder", name)
    files: dict[str, str] = {}
    if version or "description" in more or "examples" in more:
        lines = ["[adapter]", f'name = "{name}"', f'description = "{more.get("description", "")}"']
        lines.append(f'version = "{version or "0"}"\n')
        if count := more.get("examples"):
            lines.append(f"[routing]\nexamples = {[f'what is {name} number {i}?' for i in range(count)]}\n")
        files["adapter_toml"] = "\n".join(lines)
    if "expect" in more:
        files["probes_jsonl"] = json.dumps({"prompt": "who?", "expect": more["expect"]})
    return write_adapter(folder, None, weights(value), **files)


async def eventually(true: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "did not happen in time"
        await asyncio.sleep(0.01)


def states(registry: Any) -> dict[str, str]:
    """State of each version by `name@version`."""
    return {str(i.ref): str(i.state) for i in registry.list()}


def is_ready(registry: Any, name: str, version: str = "0") -> Callable[[], bool]:
    """For `eventually`."""
    return lambda: any(
        i.ref == AdapterRef(name, version) and i.state is AdapterState.READY for i in registry.list()
    )


def host_bytes(registry: Any) -> int:
    """Bytes of host memory that are taken or set aside for a load."""
    return int(registry._residency.used)


def leases(registry: Any) -> int:
    """Leases of all digests, also of those that no version serves any more."""
    return sum(resident.leases for resident in registry._residency)


def ref(name: str, version: str = "0") -> AdapterRef:
    """A version; "0" is the one of a folder that says none."""
    return AdapterRef(name, version)
