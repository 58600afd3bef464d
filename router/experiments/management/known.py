"""What a plan may name: adapters, judges, classifiers."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Protocol

from router.errors import AdapterNotFound, FailedPrecondition
from router.types import AdapterInfo


class Resolve(Protocol):
    """As `Catalog.resolve`."""

    def __call__(self, name: str, version: str = "", /) -> AdapterInfo:
        """The version, or the default of `name`. Raises AdapterNotFound, FailedPrecondition (quarantined)."""
        ...


@dataclass(frozen=True, slots=True)
class Known:
    """Asked anew for every plan. None: whatever is named is taken."""

    resolve: Resolve
    judges: Callable[[], Collection[str]] | None = None
    classifiers: Callable[[], Collection[str]] | None = None

    def adapter_problem(self, name: str, version: str = "") -> str:
        """Why no arm or route can be this adapter; empty if it can."""
        try:
            self.resolve(name, version)
        except AdapterNotFound as error:
            return f"{error.message}; ListAdapters shows what there is"
        except FailedPrecondition as error:
            return error.message
        return ""


def unknown(name: str, names: Collection[str]) -> str:
    """What is said of a name that is none of `names`."""
    there = ", ".join(sorted(names)) or "none"
    return f"{name!r} is not known; there are: {there}"
