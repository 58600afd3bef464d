"""What the server asks of routing and of the registry, so that each can be built and tested alone."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from router.types import (
    AdapterEvent,
    AdapterInfo,
    AdapterProfile,
    AdapterRef,
    Decision,
    PromptTemplate,
    Request,
    Sampling,
)


@dataclass(frozen=True, slots=True)
class Lease:
    """A version that stays resident while this is held. `digest` names it to the engine."""

    ref: AdapterRef
    digest: str
    prompt: PromptTemplate
    generation: Sampling
    domain: str = ""
    task: str = ""


@dataclass(frozen=True, slots=True)
class Force:
    """The wish to overrule the gate: who has it, and why."""

    by: str
    reason: str = ""


class Catalog(Protocol):
    """What routing reads of the registry. All calls are cheap and made on the event loop."""

    def resolve(self, name: str, version: str = "") -> AdapterInfo:
        """The version, or the default version of `name`. Raises AdapterNotFound, FailedPrecondition
        (quarantined, with the reason)."""
        ...

    def profiles(self) -> tuple[AdapterProfile, ...]:
        """Default versions that may be routed to, by name: READY, DISCOVERED or OFFLOADED, and past the
        gate or forced."""
        ...

    def subscribe(self, changed: Callable[[], None]) -> None:
        """`changed` is called on the event loop whenever `profiles` may have changed."""
        ...


class AdapterRegistry(Catalog, Protocol):
    """The registry as the server sees it."""

    def lease(self, ref: AdapterRef) -> AbstractAsyncContextManager[Lease]:
        """Hold a version; a cold one is loaded first without blocking anyone else.

        Raises AdapterNotFound, AdapterRejected, ResourceExhausted. Cancelling while it loads is safe.
        """
        ...

    def list(self) -> tuple[AdapterInfo, ...]:
        """Every version, quarantined ones too, by name and version."""
        ...

    def get(self, name: str, version: str = "") -> AdapterInfo:
        """Like `resolve`, but a quarantined version is returned too."""
        ...

    def etag(self, ref: AdapterRef) -> str:
        """Changes with every change of that version."""
        ...

    async def load(self, ref: AdapterRef, pinned: bool | None = None) -> AdapterInfo:
        """Bring it into host memory; idempotent."""
        ...

    async def unload(self, ref: AdapterRef) -> tuple[AdapterInfo, int]:
        """Wait for its last lease, drop it, return the bytes freed."""
        ...

    def set_default(
        self, ref: AdapterRef, etag: str = "", force: Force | None = None
    ) -> tuple[AdapterInfo, AdapterRef | None]:
        """Make it the default; returns it and the previous default. Raises StaleEtag, and GateNotPassed
        unless there is `force`."""
        ...

    def reset_default(self, name: str) -> tuple[AdapterInfo, AdapterRef | None]:
        """Take back what `set_default` chose: the rule decides again. Returns the new default and the one
        before; raises AdapterNotFound."""
        ...

    def watch(self) -> AsyncIterator[AdapterEvent]:
        """The present set as ADDED, then every change, until the iterator is closed."""
        ...


class RequestRouter(Protocol):
    """Routing as the server sees it."""

    async def route(self, request: Request) -> Decision:
        """Never raises for a classifier's fault; raises AdapterNotFound for an unknown explicit name."""
        ...
