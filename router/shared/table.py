"""What a database must do so that edges can share documents in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

Totals: TypeAlias = Mapping[str, Sequence[float]]  # by holder of a quota; see `access.quotas.Quotas.used`


@dataclass(frozen=True, slots=True)
class Row:
    """A document as it is kept. Revisions are counted over all documents, so the highest is the last."""

    key: str
    revision: int
    value: Any  # as JSON has it
    edge: str  # whose change it was


@dataclass(frozen=True, slots=True)
class Beat:
    """An edge that is there, and what clients have used at it since it started."""

    edge: str
    used: Totals


class Table(Protocol):
    """Used on one event loop. Everything raises SharedDown where the database does not answer, in seconds;
    after that `open` begins anew."""

    async def open(self) -> None:
        """Connect, and make what is not there. Raises ConfigError for a database of a newer version."""
        ...

    async def since(self, revision: int) -> tuple[Sequence[Row], int]:
        """What has changed after that revision, in order, and the highest revision there is (0: none)."""
        ...

    async def put(self, key: str, value: Any, expected: int) -> int | None:
        """Replace a document that has that revision (0: is not there). Gives the new one; None, and changes
        nothing, where it has another."""
        ...

    async def seed(self, prefix: str, values: Mapping[str, Any]) -> bool:
        """Put all of them, if there is no document yet whose key begins so."""
        ...

    async def beat(self, used: Totals) -> Sequence[Beat]:
        """Say that this edge is there; gives the others that are."""
        ...

    async def wait(self, seconds: float) -> None:
        """Until some edge has changed something, but no longer than that."""
        ...

    async def leave(self) -> None:
        """Say that this edge goes, where that can be said, and close."""
        ...

    async def close(self) -> None:
        """Let connections go."""
        ...
