"""What the core asks of the registry, and of experiments.

Experiments are a part that may be removed: the server knows no more of them than what stands here.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from router.types import (
    EVERYTHING,
    AdapterEvent,
    AdapterInfo,
    AdapterProfile,
    AdapterRef,
    Decision,
    FinishReason,
    LabelSettings,
    MixturePart,
    PromptTemplate,
    Request,
    Sampling,
    Usage,
    Visible,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class TextEncoder(Protocol):
    """A sentence encoder: vectors of whole texts, for embeddings. Of worker threads."""

    name: str  # of the model and what is merged into it
    longest: int  # tokens of a text
    size: int  # numbers of a vector

    def load(self) -> None:
        """Load it, unless it is loaded. Raises ConfigError where it is not on this machine."""
        ...

    def tokens(self, texts: Sequence[str]) -> Sequence[Sequence[int]]:
        """Token ids of each text."""
        ...

    def vectors(self, tokens: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Unit vectors, float32 [texts, size]."""
        ...


@dataclass(frozen=True, slots=True)
class Lease:
    """A version that stays resident while this is held. `digest` names it to the engine.

    Of a mixture, `ref` is the first part's, and there is neither domain nor task.
    """

    ref: AdapterRef
    digest: str
    prompt: PromptTemplate
    generation: Sampling
    domain: str = ""
    task: str = ""
    labels: LabelSettings = LabelSettings()


@dataclass(frozen=True, slots=True)
class Force:
    """A wish to overrule the gate: of whom, and why. `won`: the version won the experiment `by`."""

    by: str
    reason: str = ""
    won: bool = False


@dataclass(frozen=True, slots=True)
class Measured:
    """A version's score on test rows and its gain over the base, each with its 95 % interval: value, low,
    high. More is better."""

    metric: str
    score: tuple[float, float, float]
    gain: tuple[float, float, float]


class Catalog(Protocol):
    """What routing reads of the registry. All calls are cheap and made on the event loop."""

    def resolve(self, name: str, version: str = "", visible: Visible = EVERYTHING) -> AdapterInfo:
        """The version, or the default version of `name`. Raises AdapterNotFound, FailedPrecondition
        (quarantined, with the reason). What is not `visible` is not there, and named in no error."""
        ...

    def profiles(self) -> tuple[AdapterProfile, ...]:
        """Default versions that may be routed to, by name: READY, DISCOVERED or OFFLOADED, and past the
        gate or forced. The same tuple while nothing changed, and in it the same object for an adapter that
        did not: differences are found by identity."""
        ...

    def why_none(self, visible: Visible = EVERYTHING) -> str:
        """Why no adapter can be routed to, and what to do: one sentence, '' where one can. It names only what
        is `visible`."""
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

    def check_mixture(self, parts: Sequence[MixturePart]) -> None:
        """Raises FailedPrecondition where these cannot be mixed, as far as one can see without loading."""
        ...

    def lease_mixture(
        self, parts: Sequence[MixturePart], tenant: str = ""
    ) -> AbstractAsyncContextManager[Lease]:
        """Hold a mixture and all its parts; what is not in memory is loaded or made first.

        Prompt and sampling are those of the first part. Raises what `lease` and `check_mixture` do, and
        Overloaded where too many mixtures are in use, of all or of the tenant's.
        """
        ...

    def mixtures(self) -> int:
        """How many mixtures are in memory."""
        ...

    def list(self) -> tuple[AdapterInfo, ...]:
        """Every version, quarantined ones too, by name and version."""
        ...

    def listed(self, after: AdapterRef | None = None) -> Iterator[AdapterInfo]:
        """Like `list`, what comes behind `after` alone, which need not be there; each made when it is asked
        for. Use it in one step of the event loop."""
        ...

    def get(self, name: str, version: str = "", visible: Visible = EVERYTHING) -> AdapterInfo:
        """Like `resolve`, but a quarantined version is returned too."""
        ...

    def count(self) -> int:
        """How many versions there are."""
        ...

    def resident(self) -> Iterator[AdapterInfo]:
        """The versions that are in memory, in no order. Use it in one step of the event loop."""
        ...

    def etag(self, ref: AdapterRef) -> str:
        """Changes with every change of that version."""
        ...

    def measured(self, ref: AdapterRef) -> Measured | None:
        """What the report says that was read of it; None without one."""
        ...

    async def document(self, ref: AdapterRef, name: str) -> bytes | None:
        """A file of its folder that is for people, such as `REPORT.md`; None where it has none
        of that name, or is refused. Raises AdapterNotFound."""
        ...

    def leases(self) -> int:
        """How many are held, also of what was replaced or removed since and is still in use."""
        ...

    async def load(self, ref: AdapterRef, pinned: bool | None = None) -> AdapterInfo:
        """Bring it into host memory; idempotent."""
        ...

    async def unload(self, ref: AdapterRef) -> tuple[AdapterInfo, int]:
        """Wait for its last lease, drop it, return the bytes freed."""
        ...

    async def set_default(
        self, ref: AdapterRef, etag: str = "", force: Force | None = None
    ) -> tuple[AdapterInfo, AdapterRef | None]:
        """Make it the default, on the disk too; returns it and the previous default. Raises StaleEtag,
        GateNotPassed unless there is `force`, and NotSaved, when nothing has changed."""
        ...

    async def reset_default(self, name: str) -> tuple[AdapterInfo, AdapterRef | None]:
        """Take back what `set_default` chose: the rule decides again. Returns the new default and the one
        before; raises AdapterNotFound, NotSaved."""
        ...

    def watch(self) -> AsyncIterator[AdapterEvent]:
        """The present set as ADDED, then every change, until the iterator is closed."""
        ...

    def share(self, documents: SharedDocuments) -> None:
        """What is chosen holds for all who have `documents`, too; before it starts."""
        ...

    @property
    def flaws(self) -> Sequence[str]:
        """What is wrong and holds up no request."""
        ...


class SharedDocuments(Protocol):
    """Documents that several servers have together, each a value as JSON has it. Used on the event loop."""

    def get(self, key: str) -> Any:
        """What is known of it; None if there is no such document."""
        ...

    def known(self) -> Collection[str]:
        """The keys of all documents."""
        ...

    def join(self, own: Callable[[], Mapping[str, Any]], agree: Callable[[Collection[str]], None]) -> None:
        """Share. Where nobody does yet, it is what `own` gives; else what there is counts.

        `agree` hears of documents that are others now, or, at the beginning, may be.
        """
        ...

    async def put(self, key: str, value: Any) -> None:
        """Change it everywhere; it holds here when this returns. Raises ChangedElsewhere where it is not as
        known here, and SharedDown."""
        ...


class Assignment(Protocol):
    """The arm that a request has in an experiment. Its giver gets it back in `Served`."""

    @property
    def versions(self) -> tuple[AdapterRef | None, ...]:
        """Who may answer for the arm, None being the base: its own version, then control's."""
        ...


class Stage(StrEnum):
    """Where a request was when it ended without its whole answer. All but the last come before the first
    token."""

    LEASE = "lease"
    """Its version could not be found or loaded."""
    ADMISSION = "admission"
    """The engine did not take it: the prompt, a quota, a constraint, or too many requests."""
    PREFILL = "prefill"
    """The engine had it, and gave no token."""
    STREAM = "stream"
    """After its first token."""


@dataclass(frozen=True, slots=True)
class Exposed:
    """An exposure as experiments keep it: a unit began to get an arm's answer, or what stands in for it.

    `stage`: where the request ended that never got a first token; empty for an answer that began.
    """

    experiment: str
    phase: int
    arm: str
    unit: str  # the pseudonym that it is kept under
    time: float  # unix seconds
    degraded: str = ""
    stage: Stage | None = None


def _ignore(exposed: Exposed) -> None:
    """Ignore it."""


@dataclass(frozen=True, slots=True)
class Served:
    """A request that the engine has taken: which adapter answers it, for which arm.

    `degraded` says why something else answers for the arm; empty if the arm does. `exposed` gets each
    exposure that is kept of it. `since` is when it was routed, in `time.monotonic()` seconds.
    """

    request: Request
    decision: Decision
    assignment: Assignment | None = None
    degraded: str = ""
    exposed: Callable[[Exposed], None] = _ignore
    since: float = field(default_factory=time.monotonic)


@dataclass(frozen=True, slots=True)
class End:
    """How an answer ended. `usage` counts what was given until then.

    Without `reason` it did not come to an end: `error` names the reason of the error, or the user
    `cancelled` it, and `stage` says where the request was.
    """

    reason: FinishReason | None
    text: str
    usage: Usage
    error: str = ""
    cancelled: bool = False
    stage: Stage | None = None


class Watcher(Protocol):
    """Wants to know how one answer goes. Called on the event loop; must return at once and not raise."""

    def began(self) -> None:
        """The first token is there. Not called for an answer that never began."""
        ...

    def ended(self, end: End) -> None:
        """Called once for every answer, begun or not."""
        ...


@dataclass(frozen=True, slots=True)
class Place:
    """Where a unit stands in a running experiment: its arm, or, where that is empty, why it has none.

    `label` names what is its unit, empty for `routing.unit`. `answers` is who answers for the arm: a version
    or base; empty where the arm stands for all other experiments.
    """

    experiment: str
    phase: int
    label: str
    arm: str = ""
    control: bool = False
    share: float = 0.0  # of the units that take part
    answers: str = ""
    outside: str = ""


UNIT_MISSING = "unit_missing"  # of `Place.outside`: the request has no unit


class Routing(Protocol):
    """What chooses an adapter."""

    async def route(self, request: Request) -> Decision:
        """Where a request goes, and why."""
        ...


class Experiments(Protocol):
    """Experiments as a server has them: on the event loop, and without waiting for a database."""

    @property
    def running(self) -> bool:
        """Whether a request has to be asked about at all."""
        ...

    async def choose(
        self, request: Request, router: Routing, counted: bool
    ) -> tuple[Decision, Assignment | None]:
        """The decision, with the names of experiment and arm in it, and the arm; None if the request takes
        no part. Without `counted` nothing will be generated."""
        ...

    def watchers(self, served: Served) -> Sequence[Watcher]:
        """All that watch this answer."""
        ...

    def feedback(self, response_id: str, value: float) -> None:
        """Feedback on an answer was kept: 1 good, 0 bad. Returns at once. It counts where a plan has the
        metric `feedback`; of an answer the first counts."""
        ...

    def unserved(self, served: Served, end: End) -> None:
        """A request that was routed has ended before the engine took it."""
        ...

    @property
    def summary(self) -> str:
        """How many run, in words."""
        ...

    def places(self, request: Request) -> Sequence[Place]:
        """Where the request's unit stands in every running experiment whose arms answer and which its caller
        may know of, by name. Nothing is counted or kept. Raises StoreDown: then no unit has an arm."""
        ...


class Server(Protocol):
    """A server as hooks get it. What else it has may change with any version."""

    @property
    def settings(self) -> Any:
        """Its settings, `router.config.Settings`."""
        ...

    @property
    def state_dir(self) -> Path:
        """A folder for what should outlive the process."""
        ...

    @property
    def address(self) -> str:
        """Where it listens for gRPC; empty before that."""
        ...

    @property
    def http_address(self) -> str:
        """Where it listens for HTTP; empty before that, and where it does not."""
        ...
