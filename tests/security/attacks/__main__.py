"""python -m tests.security.attacks NAME ADDRESS NUMBER [MORE...]: one attack; prints what it saw as JSON."""

from __future__ import annotations

import asyncio
import json
import sys

from tests.security.attacks.floods import ATTACKS, Seen


def value(said: str) -> int | str:
    """A number where it is one."""
    return int(said) if said.isdigit() else said


async def run(name: str, address: str, *more: str) -> Seen:
    """The attack of that name."""
    return await ATTACKS[name](address, *map(value, more))


if __name__ == "__main__":
    print(json.dumps(asyncio.run(run(*sys.argv[1:]))))
