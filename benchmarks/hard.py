"""`python -m benchmarks.hard`: how well hard requests and requests in other languages are routed.

Hard requests are for the shipped adapters, and of several kinds, such as keyword stuffing and an instruction
in the middle of a long text. Their unseen half is asked with --unseen only, and
nothing may be tuned by it. The table of other languages needs multilingual-e5-small, which
`lora-router models fetch` gets; without it the table is left out, and so is what it does for hard requests.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from benchmarks.local_router import (
    AUTHOR,
    BUILDING,
    COUNTED,
    Went,
    chosen_for,
    counted,
    deployment_of,
    half_of,
    local_router,
    shipped_router,
    told,
)
from benchmarks.report import write
from router.models import MULTILINGUAL, has_multilingual
from router.routing.router import Router

NOTES = [
    COUNTED,
    "Other languages: the examples are English; company and hospital have 8 each. "
    "Strangers are requests for none of the adapters of all three. All of these were written for building.",
    AUTHOR,
]


async def hard(halves: Sequence[str]) -> tuple[str, list[dict[str, Any]]]:
    """What decides, and a table with a line for each kind, and one for all."""
    table = []
    async with shipped_router() as router:
        for half in halves:
            went: dict[str, list[Went]] = {}
            for row in half_of("hard.jsonl", half):
                found = row["adapter"], await chosen_for(router, row["text"])
                for kind in (row["kind"], "all"):
                    went.setdefault(kind, []).append(found)
            table += [{"half": half, "kind": kind, **counted(found)} for kind, found in sorted(went.items())]
        return told(router), table


async def foreign() -> list[dict[str, Any]]:
    """A line for each deployment and language."""
    routers = {"shipped": shipped_router(), **{name: local_router(deployment_of(name)) for name in BUILDING}}
    return [row for name, router in routers.items() for row in await foreign_of(name, router)]


async def foreign_of(name: str, opened: AbstractAsyncContextManager[Router]) -> list[dict[str, Any]]:
    """Its lines of one deployment."""
    table = []
    rows = [row for row in half_of("foreign.jsonl", "build") if row["deployment"] in (name, "")]
    async with opened as router:
        for language in dict.fromkeys(row["language"] for row in rows):
            asked = [row for row in rows if row["language"] == language]
            found = [(row["adapter"], await chosen_for(router, row["text"])) for row in asked]
            strange = [adapter for right, adapter in found if not right]
            routed = f"{sum(map(bool, strange))} of {len(strange)}"
            known = counted([pair for pair in found if pair[0]])
            table.append({"deployment": name, "language": language, **known, "strangers routed": routed})
    return table


def main() -> None:
    """Measure and write results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--unseen", action="store_true", help="ask the unseen half, too")
    halves = ("build", "unseen") if parser.parse_args().unseen else ("build",)
    tables = {"Other languages": asyncio.run(foreign())} if has_multilingual() else {}
    what, rows = asyncio.run(hard(halves))
    reader = "with" if tables else "without"
    print(write("hard", f"{what} Routed {reader} {MULTILINGUAL}.", rows, NOTES, tables).read_text())


if __name__ == "__main__":
    main()
