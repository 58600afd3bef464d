"""What this package needs of vLLM, in our own words: `link` gives it with the real one, tests by a script."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

DEAD = "vLLM's processes have ended"


@dataclass(frozen=True, slots=True)
class Lora:
    """An adapter as vLLM is told of it. Weights go by the number, cached keys and values by name and path."""

    name: str
    number: int
    path: str


@dataclass(frozen=True, slots=True)
class Ask:
    """One request. `sampling` are fields of vLLM's SamplingParams; of priorities the lower goes first."""

    id: str
    tokens: list[int]
    sampling: Mapping[str, Any]
    lora: Lora | None = None
    priority: int = 0
    salt: str = ""  # only requests with the same find each other's cached beginnings


@dataclass(frozen=True, slots=True)
class Chances:
    """A token's log-probability, and those of the likeliest by token, the token's own among them."""

    own: float
    all: Mapping[int, float]


@dataclass(frozen=True, slots=True)
class Piece:
    """What one step added to an answer, or, of a reading, what the tokens of its prompt got."""

    tokens: tuple[int, ...] = ()
    chances: tuple[Chances, ...] = ()  # of each token, where they were asked for
    prompt: tuple[float, ...] = ()  # log-probabilities of all tokens of the prompt but the first
    end: str = ""  # why it ends, in vLLM's words: stop, length, abort, error
    cached: int = 0  # tokens of the prompt that were found in the cache
    scheduled: float = 0.0  # time.monotonic() of its first step
    spoilt: bool = False  # logits were no finite numbers


@dataclass(frozen=True, slots=True)
class Facts:
    """What vLLM made of its arguments."""

    version: str
    device: str
    dtype: str
    context: int  # tokens
    quantization: str = ""
    blocks: int = 0
    block_size: int = 0


@dataclass(slots=True)
class Meter:
    """Kept by the client at every step of vLLM, read by anybody."""

    steps: int = 0
    progress: float = 0.0  # time.monotonic() of the last step
    waiting: int = 0
    usage: float = 0.0  # share of the cache's blocks in use
    preemptions: int = 0
    hits: int = 0  # tokens found in the prefix cache
    queries: int = 0  # tokens looked for


class Client(Protocol):
    """vLLM's asynchronous engine. Used on one event loop, but for `facts`, `meter` and `dead`."""

    facts: Facts
    meter: Meter

    @property
    def dead(self) -> bool:
        """Whether its processes cannot go on."""
        ...

    def generate(self, ask: Ask) -> AsyncGenerator[Piece, None]:
        """Pieces, the last with an `end`. Raises Unavailable where vLLM is dead, EngineFailed."""
        ...

    async def abort(self, id: str) -> None:
        """Forget a request; nothing happens for one that is unknown."""
        ...

    async def add(self, lora: Lora) -> None:
        """Load an adapter. Raises AdapterRejected, Unavailable; a rejected one may be listed all the same."""
        ...

    async def remove(self, number: int) -> bool:
        """Drop an adapter; False if there was none."""
        ...

    async def pin(self, number: int) -> None:
        """Keep an adapter in its slot."""
        ...

    def close(self, seconds: float) -> None:
        """End vLLM's processes; blocks so long at most."""
        ...


@dataclass(slots=True)
class Ids:
    """Names of requests that never repeat: vLLM would abort both of two that are called alike."""

    given: int = field(default=0)

    def next(self, about: str) -> str:
        """Another one, for people to tell whose it is."""
        self.given += 1
        return f"{self.given}-{about}"
