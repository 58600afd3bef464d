"""A catalog, classifiers that do what a test says, and requests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest

from router.errors import AdapterNotFound
from router.plugins import Registration
from router.routing import Classifier, Scores
from router.routing.calibration import Calibration
from router.routing.executor import ClassifierExecutor
from router.routing.router import Router
from router.types import (
    EVERYTHING,
    AdapterInfo,
    AdapterProfile,
    AdapterRef,
    AdapterState,
    Request,
    RoutingHints,
    Turn,
    Visible,
)

MEDICAL = AdapterProfile("medical", "1.0.0", domain="medical", task="question-answering")
LEGAL = AdapterProfile("legal", "2.1.0", domain="legal", task="question-answering")
TRANSLATION = AdapterProfile("translation", "1.0.0", task="translation")


class FakeCatalog:
    """router.ports.Catalog over a list of profiles."""

    def __init__(self, profiles: Iterable[AdapterProfile]) -> None:
        self._profiles = tuple(profiles)
        self._listeners: list[Callable[[], None]] = []

    def resolve(self, name: str, version: str = "", visible: Visible = EVERYTHING) -> AdapterInfo:
        for p in self._profiles:
            if p.name == name and name in visible and version in ("", p.version):
                ref = AdapterRef(p.name, p.version)
                return AdapterInfo(ref, AdapterState.READY, digest="d" * 64, domain=p.domain, task=p.task)
        raise AdapterNotFound(name)

    def why_none(self, visible: object = None) -> str:
        return "no adapter is here"

    def profiles(self) -> tuple[AdapterProfile, ...]:
        return self._profiles

    def subscribe(self, changed: Callable[[], None]) -> None:
        self._listeners.append(changed)

    def become(self, *profiles: AdapterProfile) -> None:
        """Another set of adapters from now on."""
        self._profiles = profiles
        for changed in self._listeners:
            changed()


class FakeHost:
    """A plugin host whose classifiers the test gives."""

    def __init__(self, *registrations: Registration) -> None:
        self.given = registrations
        self._changed: list[Callable[[], None]] = []

    def registrations(self) -> tuple[Registration, ...]:
        return tuple(sorted(self.given, key=lambda r: (r.priority, r.name)))

    def become(self, *registrations: Registration) -> None:
        self.given = registrations
        for changed in self._changed:
            changed()

    def subscribe(self, changed: Callable[[], None]) -> None:
        self._changed.append(changed)

    def stale(self) -> bool:
        return False

    def status(self) -> tuple[()]:
        return ()

    async def pick_up(self, wait: float | None = None) -> None:
        return None

    async def watch(self, interval: float = 1.0) -> None:
        await asyncio.Event().wait()


class Says(Classifier):
    """Answers each request with `answer(request)`, or with `answer` itself."""

    def __init__(self, name: str, answer: Any = None) -> None:
        self.name, self._answer = name, answer
        self.batches: list[int] = []

    def classify_batch(self, requests: Sequence[Request]) -> Sequence[Scores | None]:
        self.batches.append(len(requests))
        answer = self._answer
        return [answer(r) if callable(answer) else answer for r in requests]


def registered(classifier: Classifier, timeout: float = 5.0, priority: int = 100, **kw: Any) -> Registration:
    """What a host makes of it."""
    return Registration(
        classifier, "test", priority, timeout, kw.pop("required", False), kw.pop("is_async", False)
    )


def asking(text: str = "hello", deadline: float | None = None, **hints: Any) -> Request:
    """A request of one user turn."""
    return Request("r", turns=(Turn("user", text),), routing=RoutingHints(**hints), deadline=deadline)


async def eventually(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait until `condition` holds; a test that never gets there fails."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


def calibration(**changes: Any) -> Calibration:
    """One for legal and medical."""
    values: dict[str, Any] = {
        "created": "2026-12-02T10:00:00Z",
        "threshold": 0.6,
        "target": 0.05,
        "strange_target": 0.05,
        "delta": 0.05,
        "adapters": ("legal", "medical"),
    }
    return Calibration(**values | changes)


class Kit:
    """What tests of this folder need, under one name."""

    medical, legal, translation = MEDICAL, LEGAL, TRANSLATION
    catalog, host, says = FakeCatalog, FakeHost, Says
    calibration = staticmethod(calibration)
    registered, asking = staticmethod(registered), staticmethod(asking)
    eventually = staticmethod(eventually)


@pytest.fixture
def kit() -> type[Kit]:
    return Kit


@pytest.fixture
async def start(kit: type[Kit]):
    """Start routers that are closed after the test."""
    routers: list[Router] = []

    async def start(
        *registrations: Registration, catalog: Any = None, host: Any = None, **options: Any
    ) -> Router:
        there = catalog or kit.catalog([kit.medical, kit.legal, kit.translation])
        routers.append(Router(there, host or kit.host(*registrations), **options))
        await routers[-1].start()
        return routers[-1]

    yield start
    for router in routers:
        await router.close()


@pytest.fixture
async def executor_of():
    """Open executors that are closed after the test."""
    executors: list[ClassifierExecutor] = []

    def open_executor(registration: Registration, **kw: Any) -> ClassifierExecutor:
        executors.append(ClassifierExecutor(registration, **kw))
        return executors[-1]

    yield open_executor
    for executor in executors:
        executor.close()
