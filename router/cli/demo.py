"""`make demo`: one base, every adapter here, real requests to all of them at once.

Nothing is pinned: routing decides where each request goes, and the table shows what it decided.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from router.cli import units
from router.cli.demo_prompts import requests_for
from router.cli.demo_server import DemoServer, demo_server
from router.cli.errors import INTERRUPTED, CliError, report
from router.types import Decision

if TYPE_CHECKING:
    from router.client import AsyncClient

MAX_TOKENS = 48
TIMEOUT = 180.0


@dataclass(slots=True)
class Asked:
    """One request of the demonstration and what came back."""

    expected: str
    prompt: str
    pinned: bool = False
    decision: Decision | None = None
    text: str = ""
    first_token: float = 0.0
    tokens: int = 0
    error: str = ""


def main() -> int:
    """Exit code 0 if every request was answered."""
    try:
        return demonstrate()
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        return report(error)


def demonstrate() -> int:
    """Fetch, start, ask, show, stop."""
    began = time.monotonic()
    fetch()
    with demo_server() as server:
        print("starting the server (the first start also compiles its native operations) ...", flush=True)
        server.wait_until_serving()
        print(f"serving after {time.monotonic() - began:.1f} s on {server.address}\n", flush=True)
        asked, most = asyncio.run(ask_all(server))
        steps = server.metric("lora_router_steps_total")
        show(asked)
        print(f"\n{shared(asked, steps, most)}")
        server.stop()
    failed = [one for one in asked if one.error]
    if failed:
        raise CliError(f"{len(failed)} of {len(asked)} requests failed; the first: {failed[0].error}")
    print(f"server stopped; {time.monotonic() - began:.1f} s in all. Yours to try: make serve")
    return 0


def fetch() -> None:
    """The base, with a progress bar the first time, and the encoder of the embedding classifier."""
    from router.cli.settings import load_settings
    from router.errors import ConfigError
    from router.models import fetch_encoder, resolve_model

    resolve_model(load_settings().model)
    try:
        fetch_encoder()
    except ConfigError as error:
        print(f"the embedding classifier stays out: {error.message}", file=sys.stderr)


async def ask_all(server: DemoServer) -> tuple[list[Asked], int]:
    """Every request at once; also the most that ran in one batch."""
    from router.client import AdapterState, AsyncClient

    async with AsyncClient(server.address, timeout=TIMEOUT) as client:
        adapters = await client.adapters.list()
        names = [a.ref.name for a in adapters if a.default and a.state is not AdapterState.QUARANTINED]
        for broken in (a for a in adapters if a.state is AdapterState.QUARANTINED):
            print(f"adapter {broken.ref} is quarantined: {broken.error}")
        asked = [Asked(*request) for request in requests_for(names)]
        print(f"asking {len(asked)} things at once, adapters: {', '.join(names) or 'none here'} ...\n")
        watch = asyncio.create_task(most_running(server))
        await asyncio.gather(*(ask(client, one) for one in asked))
        watch.cancel()
        return asked, await watch


async def ask(client: AsyncClient, one: Asked) -> None:
    """Stream one answer and note when its first token came."""
    from router.client import ClientError, Delta, Finished, Started

    started = time.monotonic()
    try:
        async for event in client.stream(
            one.prompt, max_tokens=MAX_TOKENS, adapter=one.expected if one.pinned else ""
        ):
            if isinstance(event, Started):
                one.decision = event.decision
            elif isinstance(event, Delta):
                one.first_token = one.first_token or time.monotonic() - started
                one.text += event.text
            elif isinstance(event, Finished):
                one.tokens = event.usage.completion_tokens
    except ClientError as error:
        one.error = str(error)


async def most_running(server: DemoServer) -> int:
    """The largest batch seen until cancelled."""
    most = 0
    try:
        while True:
            most = max(most, int(await asyncio.to_thread(server.metric, "lora_router_requests_running")))
            await asyncio.sleep(0.05)
    except asyncio.CancelledError:
        return most


def show(asked: Sequence[Asked]) -> None:
    """The table: who answered, how sure routing was, how fast, and what."""
    from router.cli.output import print_table

    rows = []
    for one in asked:
        decision = one.decision
        who = str(decision.adapter or "base") if decision else "-"
        sure = f"{decision.confidence:.2f} {decision.reason.value}" if decision else "-"
        rows.append(
            (
                brief(one.prompt, 44),
                who,
                sure,
                units.duration(one.first_token),
                one.error or brief(one.text, 60),
            )
        )
    print_table(["ASKED", "ANSWERED BY", "CONFIDENCE", "FIRST TOKEN", "ANSWER"], rows)


def brief(text: str, most: int) -> str:
    """One line of at most `most` characters."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1] + "…"


def shared(asked: Sequence[Asked], steps: float, most: int) -> str:
    """How many requests were answered together, from the server's own counters."""
    tokens = sum(one.tokens for one in asked)
    adapters = {one.decision.adapter for one in asked if one.decision and one.decision.adapter}
    base = any(one.decision and one.decision.adapter is None for one in asked)
    who = f"{len(adapters)} adapter{'s' * (len(adapters) != 1)}{' and the base' if base else ''}"
    rate = f"{tokens / steps:.1f} tokens a step" if steps else "no step counted"
    counted = f"{tokens} tokens by {who} in {steps:.0f} steps of one base: {rate}"
    return f"{counted}; most requests in one batch: {most}"


if __name__ == "__main__":
    sys.exit(main())
