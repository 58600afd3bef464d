"""Services of what a server does not have: every method refuses, and says how to get it."""

from __future__ import annotations

from typing import Any, TypeVar

from router.errors import FailedPrecondition

T = TypeVar("T")


def absent(kind: type[T], service: Any, why: str) -> T:
    """A servicer of that kind whose methods, those of the `service` descriptor, raise FailedPrecondition."""

    async def refuse(self: Any, request: Any, context: Any) -> None:
        raise FailedPrecondition(why)

    methods = {method.name: refuse for method in service.methods}
    made: T = type(f"Absent{kind.__name__}", (kind,), methods)()
    return made
