"""`python -m benchmarks.deployments`: how well requests are routed for adapters that nobody tuned.

Each deployment of recipes/routing has eight adapters with 8 examples each (25 with the further ones), 150
requests for them and 60 for none. There is no calibration. The deployment of the software vendor is unseen:
it is asked with --unseen only, and nothing may be tuned by it.
"""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

from benchmarks.local_router import (
    AUTHOR,
    BUILDING,
    UNSEEN,
    chosen_for,
    deployment_of,
    local_router,
    rows_of,
)
from benchmarks.report import write

NOTES = [
    "right, to the base: shares of the requests for the eight adapters. wrong of routed: of those that were "
    "routed to an adapter.",
    AUTHOR,
]


async def measured(name: str, more: bool) -> dict[str, Any]:
    """One line of the table."""
    profiles = deployment_of(name, more)
    asked = rows_of(f"{name}/test.jsonl")
    async with local_router(profiles) as router:
        found = [(row["adapter"], await chosen_for(router, row["text"])) for row in asked]
        strange = [await chosen_for(router, row["text"]) for row in rows_of(f"{name}/none.jsonl")]
    right = sum(expected == adapter for expected, adapter in found)
    routed = sum(bool(adapter) for _, adapter in found)
    return {
        "deployment": name,
        "examples each": len(profiles[0].examples),
        "requests": len(found),
        "right": right / len(found),
        "to the base": 1 - routed / len(found),
        "wrong of routed": (routed - right) / routed if routed else 0.0,
        "strangers routed": f"{sum(map(bool, strange))} of {len(strange)}",
    }


def main() -> None:
    """Measure and write results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--unseen", action="store_true", help="ask the unseen deployment, too")
    names = BUILDING + (UNSEEN if parser.parse_args().unseen else ())
    rows = [asyncio.run(measured(name, more)) for name in names for more in (False, True)]
    print(write("deployments", "Default settings, no calibration.", rows, NOTES).read_text())


if __name__ == "__main__":
    main()
