"""A registry and a router in memory, for tests of what stands on them."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

from router.engine.base import AdapterArtifact, Engine, digest_of_mixture
from router.errors import AdapterNotFound, AdapterRejected, FailedPrecondition, GateNotPassed, StaleEtag
from router.names import parse_adapter
from router.ports import Catalog, Force, Lease, Measured
from router.routing.router import resolve_mixture
from router.routing.state import RoutingState
from router.types import (
    EVERYTHING,
    AdapterEvent,
    AdapterEventKind,
    AdapterInfo,
    AdapterProfile,
    AdapterRef,
    AdapterState,
    Decision,
    MixturePart,
    Override,
    PromptTemplate,
    Reason,
    Request,
    Sampling,
    Visible,
    Vote,
)

MAX_RANK = 64


def adapter(name: str, version: str = "1.0.0", **fields: object) -> AdapterInfo:
    """An adapter on disk; the first of a name that a FakeRegistry gets is its default."""
    digest = hashlib.sha256(f"{name}@{version}".encode()).hexdigest()
    said = {"state": AdapterState.DISCOVERED, **fields}
    return AdapterInfo(AdapterRef(name, version), digest=digest, domain=name, **said)  # type: ignore[arg-type]


class FakeRegistry:
    """The AdapterRegistry port."""

    def __init__(self, engine: Engine, infos: Iterable[AdapterInfo] = ()) -> None:
        self.engine = engine
        self.prompts: dict[str, PromptTemplate] = {}
        self.generation: dict[str, Sampling] = {}
        self.infos: dict[AdapterRef, AdapterInfo] = {}
        self.mixed = 0
        self.flaws: Sequence[str] = ()
        self.artifacts: dict[str, AdapterArtifact] = {}  # by digest; others have no weights
        self.measures: dict[AdapterRef, Measured] = {}
        self.documents: dict[tuple[AdapterRef, str], bytes] = {}
        self._etags: dict[AdapterRef, int] = {}
        self._watchers: set[asyncio.Queue[AdapterEvent]] = set()
        self._changed: list[Callable[[], None]] = []
        for info in infos:
            known = {ref.name for ref in self.infos}
            first = info.ref.name not in known
            self.put(replace(info, default=first, routable=first and not info.gate))

    def share(self, documents: object) -> None:
        pass

    def put(self, info: AdapterInfo) -> None:
        """Add or change a version."""
        kind = AdapterEventKind.CHANGED if info.ref in self.infos else AdapterEventKind.ADDED
        self.infos[info.ref] = info
        self._tell(kind, info)

    def remove(self, ref: AdapterRef) -> None:
        """Take a version off the disk."""
        self._tell(AdapterEventKind.REMOVED, self.infos.pop(ref))

    def _tell(self, kind: AdapterEventKind, info: AdapterInfo) -> None:
        self._etags[info.ref] = self._etags.get(info.ref, 0) + 1
        for queue in self._watchers:
            queue.put_nowait(AdapterEvent(kind, info, time.time()))
        for changed in self._changed:
            changed()

    def get(self, name: str, version: str = "", visible: Visible = EVERYTHING) -> AdapterInfo:
        for info in self.infos.values():
            if (
                name in visible
                and info.ref.name == name
                and (info.ref.version == version or (not version and info.default))
            ):
                return info
        raise AdapterNotFound(AdapterRef(name, version).resource if version else f"adapters/{name}")

    def resolve(self, name: str, version: str = "", visible: Visible = EVERYTHING) -> AdapterInfo:
        info = self.get(name, version, visible)
        if info.state is AdapterState.QUARANTINED:
            raise AdapterRejected(info.error, resource=info.ref.resource)
        return info

    def why_none(self, visible: object = None) -> str:
        return "no adapter is here"

    def profiles(self) -> tuple[AdapterProfile, ...]:
        return tuple(
            AdapterProfile(info.ref.name, info.ref.version, info.domain, info.task)
            for info in self.list()
            if info.default and info.state is not AdapterState.QUARANTINED and not info.gate
        )

    def subscribe(self, changed: Callable[[], None]) -> None:
        self._changed.append(changed)

    def list(self) -> tuple[AdapterInfo, ...]:
        return tuple(sorted(self.infos.values(), key=lambda info: (info.ref.name, info.ref.version)))

    def count(self) -> int:
        return len(self.infos)

    def resident(self) -> Iterator[AdapterInfo]:
        return iter(self.list())

    def listed(self, after: AdapterRef | None = None) -> Iterator[AdapterInfo]:
        start = (after.name, after.version) if after is not None else ("", "")
        return (info for info in self.list() if (info.ref.name, info.ref.version) > start)

    def etag(self, ref: AdapterRef) -> str:
        if ref not in self.infos:
            raise AdapterNotFound(ref.resource)
        return str(self._etags[ref])

    def measured(self, ref: AdapterRef) -> Measured | None:
        return self.measures.get(ref)

    async def document(self, ref: AdapterRef, name: str) -> bytes | None:
        self.get(ref.name, ref.version)
        return self.documents.get((ref, name))

    def leases(self) -> int:
        return sum(info.leases for info in self.infos.values())

    @asynccontextmanager
    async def lease(self, ref: AdapterRef) -> AsyncIterator[Lease]:
        info = await self.load(ref)
        self._count(ref, 1)
        try:
            yield Lease(
                ref,
                info.digest,
                self.prompts.get(ref.name, PromptTemplate()),
                self.generation.get(ref.name, Sampling()),
                info.domain,
                info.task,
            )
        finally:
            self._count(ref, -1)

    def check_mixture(self, parts: Sequence[MixturePart]) -> None:
        if sum(self.infos[part.ref].rank for part in parts) > MAX_RANK:
            raise FailedPrecondition("the mixture has too high a rank")

    @asynccontextmanager
    async def lease_mixture(self, parts: Sequence[MixturePart], tenant: str = "") -> AsyncIterator[Lease]:
        async with AsyncExitStack() as held:
            leases = [await held.enter_async_context(self.lease(part.ref)) for part in parts]
            weighed = tuple((lease.digest, part.weight) for lease, part in zip(leases, parts, strict=True))
            mixture = AdapterArtifact("mixture", "", digest_of_mixture(weighed), {}, parts=weighed)
            await self.engine.load(mixture)
            self.mixed += 1
            yield replace(leases[0], digest=mixture.digest, domain="", task="")

    def mixtures(self) -> int:
        return self.mixed

    def _count(self, ref: AdapterRef, change: int) -> None:
        self.infos[ref] = replace(self.infos[ref], leases=self.infos[ref].leases + change)

    async def load(self, ref: AdapterRef, pinned: bool | None = None) -> AdapterInfo:
        info = self.resolve(ref.name, ref.version)
        if info.state is not AdapterState.READY:
            self.put(replace(info, state=AdapterState.LOADING))
            none = AdapterArtifact(ref.name, ref.version, info.digest, {})
            await self.engine.load(self.artifacts.get(info.digest, none))
            self.put(replace(self.infos[ref], state=AdapterState.READY))
        if pinned is not None:
            self.put(replace(self.infos[ref], pinned=pinned))
        return self.infos[ref]

    async def unload(self, ref: AdapterRef) -> tuple[AdapterInfo, int]:
        info = self.resolve(ref.name, ref.version)
        await self.engine.unload(info.digest)
        self.put(replace(self.infos[ref], state=AdapterState.OFFLOADED))
        return self.infos[ref], 4096

    async def set_default(
        self, ref: AdapterRef, etag: str = "", force: Force | None = None
    ) -> tuple[AdapterInfo, AdapterRef | None]:
        return self.choose(ref, etag, force)

    def choose(
        self, ref: AdapterRef, etag: str = "", force: Force | None = None
    ) -> tuple[AdapterInfo, AdapterRef | None]:
        info = self.resolve(ref.name, ref.version)
        if etag not in ("", self.etag(ref)):
            raise StaleEtag(f"{ref} has changed since it was read")
        if info.gate and force is None:
            raise GateNotPassed(f"{ref}: {info.gate}", resource=ref.resource, finding=info.gate)
        if info.gate and force is not None:
            made = Override(ref.version, force.by, time.time(), force.reason, info.gate, "5e" * 32)
            info = replace(info, gate="", gate_advice="", override=made)
        return self._move_default(info)

    async def reset_default(self, name: str) -> tuple[AdapterInfo, AdapterRef | None]:
        first = next((info for info in self.infos.values() if info.ref.name == name), None)
        if first is None:
            raise AdapterNotFound(f"adapters/{name}")
        return self._move_default(first)

    def _move_default(self, info: AdapterInfo) -> tuple[AdapterInfo, AdapterRef | None]:
        ref = info.ref
        previous = next((i for i in self.list() if i.ref.name == ref.name and i.default), None)
        if previous is not None:
            self.put(replace(previous, default=False, routable=False))
        self.put(replace(info, default=True, routable=not info.gate))
        return self.infos[ref], previous.ref if previous else None

    async def watch(self) -> AsyncIterator[AdapterEvent]:
        queue: asyncio.Queue[AdapterEvent] = asyncio.Queue()
        self._watchers.add(queue)
        try:
            for info in self.list():
                yield AdapterEvent(AdapterEventKind.ADDED, info, time.time())
            while True:
                yield await queue.get()
        finally:
            self._watchers.discard(queue)


class FakeRouter:
    """An explicit adapter, else one whose name is a word of the text, else the base."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self.requests: list[Request] = []
        self.answers: list[Decision] = []
        self.flaws: Sequence[str] = ()
        self.error: Exception | None = None
        self.on_vote: Callable[[Vote], None] = lambda vote: None

    def answered(self, request: Request, decision: Decision) -> None:
        self.answers.append(decision)

    def state(self) -> RoutingState:
        return RoutingState()

    def digest(self) -> str:
        return ""

    async def route(self, request: Request, threshold: object = None, known_votes: object = None) -> Decision:
        self.requests.append(request)
        if self.error is not None:
            raise self.error
        if request.routing.adapter in ("base", "adapters/base"):
            return Decision(None, Reason.EXPLICIT, confidence=1.0)
        if request.routing.adapter:
            info = self.catalog.resolve(
                *parse_adapter(request.routing.adapter, "routing.adapter"), request.visible
            )
            return Decision(info.ref, Reason.EXPLICIT, confidence=1.0)
        if request.routing.mixture:
            alone, parts = resolve_mixture(self.catalog, request.routing.mixture, request.visible)
            ref = alone.ref if alone else None
            return Decision(ref, Reason.EXPLICIT, confidence=1.0, mixture=parts)
        words = [word for word in request.text.lower().split() if word in request.visible]
        scores = {profile.name: 0.9 for profile in self.catalog.profiles() if profile.name in words}
        vote = Vote("words", scores, declined=not scores, latency=0.0001)
        self.on_vote(vote)
        if not scores:
            return Decision(None, Reason.ABSTAINED, votes=(vote,), threshold=0.5, latency=0.0002)
        ref = self.catalog.resolve(min(scores)).ref
        return Decision(ref, Reason.CLASSIFIED, "", "", "", 0.9, "words", 0.5, (vote,), 0.0002)
