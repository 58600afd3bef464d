"""`python -m benchmarks.drop_in`: a PEFT folder is copied into a serving server's adapters folder.

How long until it is READY and answers by name, and how long the pauses of four other streams get.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median

from benchmarks import report
from router.client import AdapterState, AsyncClient, Delta
from tests.serving import serving

STREAMS, TOKENS, BEFORE, RUNS = 4, 500, 4.0, 3
SOURCE = Path(__file__).parents[1] / "adapters" / "medical"


async def stream(client: AsyncClient, number: int) -> list[float]:
    """Arrival times of one stream's tokens."""
    events = client.stream(f"Write a long story, number {number}.", max_tokens=TOKENS, min_tokens=TOKENS)
    return [time.perf_counter() async for event in events if isinstance(event, Delta)]


def gaps(times: list[float], begin: float, end: float) -> list[float]:
    """Pauses between tokens that lie between two moments."""
    return [b - a for a, b in pairwise(times) if begin <= a and b <= end]


async def measure(folder: Path) -> dict[str, float]:
    """One drop-in; seconds."""
    (folder / "adapters").mkdir()
    (folder / "plugins").mkdir()
    async with serving(folder) as (_, address), AsyncClient(address) as client:
        await client.generate("Hello", max_tokens=8)
        begin = time.perf_counter()
        streams = [asyncio.create_task(stream(client, i)) for i in range(STREAMS)]
        await asyncio.sleep(BEFORE)
        copied = time.perf_counter()
        target = folder / "adapters" / "dropped"
        target.mkdir()
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copy(SOURCE / name, target / name)
        async for event in client.adapters.watch():
            if event.adapter.state is AdapterState.READY:
                break
        ready = time.perf_counter()
        await client.generate("Beard ringworm", adapter="dropped", max_tokens=8)
        answered = time.perf_counter()
        arrivals = await asyncio.gather(*streams)
    usual = [g for times in arrivals for g in gaps(times, begin + 1, copied)]
    during = [g for times in arrivals for g in gaps(times, copied, answered)]
    return {
        "ready": ready - copied,
        "answered": answered - copied,
        "usual median": median(usual),
        "usual longest": max(usual),
        "during longest": max(during),
    }


def main() -> None:
    """Measure five times and write results."""
    runs = []
    for _ in range(RUNS):
        with tempfile.TemporaryDirectory() as folder:
            runs.append(asyncio.run(measure(Path(folder))))
    rows = [{"what": f"{k}, ms", f"median of {RUNS}": median(r[k] for r in runs) * 1e3} for k in runs[0]]
    ratio = median(r["during longest"] / r["usual longest"] for r in runs)
    print(report.table(rows))
    workload = (
        f"{STREAMS} streams of {TOKENS} tokens from the base; `lora-router serve` and a client, one machine."
    )
    notes = ["READY target 3,000 ms", f"longest pause during / usual longest: {ratio:.2f} (target under 2)"]
    print("written to", report.write("drop-in", workload, rows, notes))


if __name__ == "__main__":
    main()
