"""`python -m benchmarks.conversations`: how well turns of chats and system prompts are routed.

The chats are for the shipped adapters. Their unseen half is asked with --unseen only, and nothing may be
tuned by it.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from typing import Any

from benchmarks.local_router import (
    AUTHOR,
    COUNTED,
    Went,
    chosen,
    counted,
    half_of,
    shipped_router,
    told,
    turns_of,
)
from benchmarks.report import write
from router.routing.router import Router
from router.types import Continuity

MODES: tuple[Continuity, ...] = ("adaptive", "none")
NOTES = [COUNTED, "With continuity `none` each turn is routed by itself.", AUTHOR]


async def asked(router: Router, half: str, mode: Continuity) -> list[dict[str, Any]]:
    """A line for first turns, for later turns of each kind of chat, and for system prompts."""
    went: dict[str, list[Went]] = {}
    for row in half_of("chats.jsonl", half):
        turns = turns_of(row)
        ends = [i for i, turn in enumerate(turns, 1) if turn.role == "user"]
        for end, expected in zip(ends, row["expected"], strict=True):
            kind = "first turn" if end == ends[0] else row["kind"]
            went.setdefault(kind, []).append((expected, await chosen(router, turns[:end], mode)))
    for row in half_of("system_prompts.jsonl", half):
        went.setdefault("system prompt", []).append(
            (row["adapter"], await chosen(router, turns_of(row), mode))
        )
    return [
        {"half": half, "continuity": mode, "turns": kind, **counted(found)} for kind, found in went.items()
    ]


async def measured(halves: Sequence[str]) -> tuple[str, list[dict[str, Any]]]:
    """What decides, and the table."""
    async with shipped_router() as router:
        rows = [row for half in halves for mode in MODES for row in await asked(router, half, mode)]
        return told(router), rows


def main() -> None:
    """Measure and write results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--unseen", action="store_true", help="ask the unseen half, too")
    halves = ("build", "unseen") if parser.parse_args().unseen else ("build",)
    print(write("conversations", *asyncio.run(measured(halves)), NOTES).read_text())


if __name__ == "__main__":
    main()
