"""`make demo`: one base, every adapter here, real requests to all of them at once, then one more adapter.

Nothing is pinned: routing decides where each request goes, and the table shows what it decided. The last
adapter is copied in while the server runs, and the request for it goes to it without a restart.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from router.cli.command import INTERRUPTED, CliError, report
from router.cli.output import duration, print_table
from router.folders import state_folder
from router.types import Decision

MAX_TOKENS, TIMEOUT = 48, 180.0
STOP_SECONDS = 40.0
SAY_SECONDS = 5.0  # between lines about a wait
LOG_LINES = 20
AGAIN = "Run it again: what was installed, fetched and compiled is kept"
STEPS = "lora_router_steps_total"


@dataclass(slots=True)
class DemoRequest:
    """One request of the demonstration and what came back."""

    expected: str  # name of the adapter; empty: the base
    prompt: str
    decision: Decision | None = None
    text: str = ""
    first_token: float = 0.0  # seconds
    tokens: int = 0
    error: str = ""


def main() -> int:
    """Exit code 0 if every request was answered."""
    try:
        return demonstrate()
    except KeyboardInterrupt:
        print(f"\nstopped. {AGAIN}.", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        return report(error)


def demonstrate() -> int:
    """Fetch, start, ask, show, copy one more adapter in, ask again, stop."""
    began = time.monotonic()
    fetch_models()
    with drop_folder() as (folder, flags), demo_server(*flags) as server:
        print("starting the server ...", flush=True)
        server.wait_until_ready()
        print(f"serving after {time.monotonic() - began:.1f} s on {server.address}\n", flush=True)
        asked, steps = asyncio.run(ask_all(server))
        print_answers(asked)
        print(f"\n{batching_summary(asked, steps)}")
        asked += asyncio.run(drop_in(server, folder))
        server.stop()
    if failed := [one for one in asked if one.error]:
        raise CliError(f"{len(failed)} of {len(asked)} requests failed; the first: {failed[0].error}")
    print(f"server stopped; {time.monotonic() - began:.1f} s in all. Yours to try: make serve")
    return 0


def fetch_models() -> None:
    """The base and the encoder of the classifier, with a progress bar the first time."""
    from router.cli.settings import load_settings
    from router.errors import ConfigError, DataLoss
    from router.models import fetch_encoder, resolve_model

    resolve_model(load_settings().model)
    try:
        fetch_encoder()
    except (ConfigError, DataLoss) as error:
        print(f"requests are not classified: {error.message}", file=sys.stderr)


@contextmanager
def drop_folder() -> Iterator[tuple[Path, list[str]]]:
    """An empty adapters folder over those that are served here, and the flags of `serve` for them.

    It is the same one each time, so that the next demonstration has what classifiers learned in this one.
    """
    from router.cli.settings import adapter_folders, load_settings

    served = adapter_folders(load_settings())
    folder = state_folder() / "demo" / "adapters"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder, [part for one in (folder, *served) for part in ("--adapters-dir", str(one))]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# -- the server: a subprocess on free ports of this machine


class DemoServer:
    """The running server. `address` and `metrics` are there once it listens."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process, self.log = process, log
        self.address = self.metrics = ""

    def failure(self, text: str) -> CliError:
        """An error to raise, after the last lines that the server wrote were shown."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        print("\n".join(lines[-LOG_LINES:]), file=sys.stderr)
        return CliError(f"{text}; its last lines are above, and say why. {AGAIN}")

    def wait_until_ready(self) -> None:
        """Follow its log until it is ready, however long that takes; show warnings, and what it does."""
        began = said = time.monotonic()
        last = "loading"
        with self.log.open(encoding="utf-8", errors="replace") as lines:
            while True:
                if line := lines.readline():
                    entry = entry_of(line)
                    last = entry.get("event") or last
                    if entry.get("event") == "listening":
                        self.address, self.metrics = entry["address"], entry["metrics"]
                    elif entry.get("level") == "warning":
                        print(f"  {last}", flush=True)
                    elif last.startswith("lora-router ") and last.endswith(" is ready"):
                        return
                    continue
                if self.process.poll() is not None:
                    raise self.failure(f"the server ended with code {self.process.returncode}")
                if (now := time.monotonic()) - said >= SAY_SECONDS:
                    said = now
                    print(f"  {now - began:.0f} s: {last}", flush=True)
                time.sleep(0.1)

    def steps(self) -> float:
        """How many steps its engine has made."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://{self.metrics}/metrics", timeout=5) as answer:
            found = re.search(rf"^{STEPS} (\S+)$", answer.read().decode(), re.MULTILINE)
        return float(found[1]) if found else 0.0

    def stop(self) -> None:
        """SIGTERM, and the exit code must be 0."""
        self.process.terminate()
        try:
            code = self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            raise self.failure(f"the server did not stop within {STOP_SECONDS:.0f} s") from None
        if code != 0:
            raise self.failure(f"the server ended with code {code}")


@contextmanager
def demo_server(*flags: str) -> Iterator[DemoServer]:
    """`lora-router serve` with its output in a temporary file; ended if it is still there at the end."""
    command = [sys.executable, "-m", "router.cli", "serve", "--http-listen", ""]
    command += ["--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0", *flags]
    with tempfile.NamedTemporaryFile(prefix="lora-router-demo-", suffix=".log") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        try:
            yield DemoServer(process, Path(log.name))
        finally:
            process.kill()
            process.wait()


def entry_of(line: str) -> dict[str, Any]:
    """A line of the server's log; of what is printed otherwise, the text as its event."""
    try:
        entry = json.loads(line)
    except ValueError:
        entry = None
    return entry if isinstance(entry, dict) else {"event": line.strip()}


# -- asking


async def ask_all(server: DemoServer) -> tuple[list[DemoRequest], float]:
    """Every request at once; also the steps that it took."""
    from router.client import AdapterState, AsyncClient

    async with AsyncClient(server.address, timeout=TIMEOUT) as client:
        adapters = await client.adapters.list()
        for broken in (a for a in adapters if a.state is AdapterState.QUARANTINED):
            print(f"adapter {broken.ref} is quarantined: {broken.error}")
        names = [a.ref.name for a in adapters if a.default and a.state is not AdapterState.QUARANTINED]
        asked = requests_for(names)
        print(f"asking {len(asked)} things at once, adapters: {', '.join(names) or 'none here'} ...\n")
        before = await asyncio.to_thread(server.steps)  # classifiers have been reading
        await asyncio.gather(*(ask_one(client, one) for one in asked))
        return asked, await asyncio.to_thread(server.steps) - before


async def drop_in(server: DemoServer, folder: Path) -> list[DemoRequest]:
    """Copy one more adapter into `folder` and ask it, before and after; returns both requests.

    Its weights are those of the adapter here that answers from a passage: none is trained for this.
    """
    from router.built_in import built_in_folders
    from router.client import AsyncClient

    weights = next(
        (one / WEIGHTS_OF for one in built_in_folders("adapters") if (one / WEIGHTS_OF).is_dir()), None
    )
    if weights is None:
        return []
    before, after = DemoRequest("", DROPPED_PROMPT), DemoRequest(DROPPED, DROPPED_PROMPT)
    async with AsyncClient(server.address, timeout=TIMEOUT) as client:
        await ask_one(client, before)
        print(f"\ncopying one more adapter, {DROPPED}, into {folder} ...", flush=True)
        part = folder / f".{DROPPED}"
        part.mkdir()
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copy(weights / name, part)
        (part / "adapter.toml").write_text(DROPPED_TOML, encoding="utf-8")
        part.rename(folder / DROPPED)
        seconds = await until_routed(client)
        await ask_one(client, after)
    print(f"the same question before and {seconds:.1f} s after, without a restart:\n")
    print_answers([before, after])
    print(
        f"\nThis shows routing: {DROPPED} has the weights of {WEIGHTS_OF}, a passage of its own in its "
        f"prompt, and {DROPPED_TOML.count('?')} examples of what it is asked."
    )
    return [before, after]


async def until_routed(client: Any) -> float:
    """Wait until the question goes to the adapter that was copied in; returns the seconds that took.

    A line now and then names the classifiers that still learn, which takes longest in the first start.
    """
    from router.types import VoteError

    began = said = time.monotonic()
    while True:
        decision = await client.route(DROPPED_PROMPT)
        now = time.monotonic()
        if decision.adapter is not None and decision.adapter.name == DROPPED:
            return now - began
        if now - said >= SAY_SECONDS:
            said = now
            late = ", ".join(vote.classifier for vote in decision.votes if vote.error == VoteError.NOT_READY)
            print(
                f"  {now - began:.0f} s: {f'still learning: {late}' if late else 'not routed yet'}",
                flush=True,
            )
        await asyncio.sleep(0.1)


async def ask_one(client: Any, one: DemoRequest) -> None:
    """Stream one answer and note when its first token came."""
    from router.client import ClientError, Delta, Finished, Started

    started = time.monotonic()
    try:
        async for event in client.stream(
            one.prompt, max_tokens=MAX_TOKENS, adapter=one.expected if one.prompt == PINNED else ""
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


# -- showing


def print_answers(asked: Sequence[DemoRequest]) -> None:
    """The table: who answered, how sure routing was, how fast, and what."""
    rows = []
    for one in asked:
        decision = one.decision
        who = str(decision.adapter or "base") if decision else "-"
        sure = f"{decision.confidence:.2f} {decision.reason.value}" if decision else "-"
        answer = one.error or brief(one.text, 60)
        rows.append((brief(one.prompt, 44), who, sure, duration(one.first_token), answer))
    print_table(["ASKED", "ANSWERED BY", "CONFIDENCE", "FIRST TOKEN", "ANSWER"], rows)


def brief(text: str, most: int) -> str:
    """One line of at most `most` characters."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1] + "…"


def batching_summary(asked: Sequence[DemoRequest], steps: float) -> str:
    """How many requests were answered together, from the server's own counters."""
    tokens = sum(one.tokens for one in asked)
    adapters = {one.decision.adapter for one in asked if one.decision and one.decision.adapter}
    base = any(one.decision and one.decision.adapter is None for one in asked)
    who = f"{len(adapters)} adapter{'s' * (len(adapters) != 1)}{' and the base' if base else ''}"
    rate = f"{tokens / steps:.1f} tokens a step" if steps else "no step counted"
    return f"{tokens} tokens by {who} in {steps:.0f} steps of one base: {rate}"


# -- what is asked: none of it is in the training data of the adapters (a test compares)


# Adapter name -> requests that should find it on their own.
PROMPTS: dict[str, tuple[str, ...]] = {
    "medical": (
        'Which ICD-10-CM chapter does "Beard ringworm" belong to?',
        'Which ICD-10-CM chapter does this diagnosis belong to: "Stone in the left kidney"?',
    ),
    "translation": (
        "Translate to French: high-level FTP client library for Python",
        "Translate to French: small and fast editor for configuration files",
    ),
    "legal": (
        "Which licence does this notice grant (SPDX identifier), and of what kind is it?\n\n"
        "You may use and share this program under version 3 of the GNU Affero General Public License only.",
    ),
    "financial": (
        'Where is the line item "Interest Owed On Customer Savings" reported? '
        "Give the financial statement and its section.",
    ),
    "qa": (
        "Answer the question from the passage.\n\n"
        "Passage: The lighthouse on the northern cape was lit in 1871 and automated in 1988; its last "
        "keeper, Ruth Olsen, stayed on as a guide.\n\n"
        "Question: When was the lighthouse automated?",
    ),
    "summarization": (
        "Summarize this software description in one short line.\n\n"
        "This tool watches a folder of photographs, finds pictures that show the same scene, and proposes "
        "which ones to delete. It runs in a terminal and never deletes a file without asking.",
    ),
    "code": (
        "Write a SQLite query with ? for values.\nTables: ships(ship_id, name, harbour, built_year)\n"
        "Question: How many ships were built after a given year?",
    ),
}
BASE = ("Write two lines of verse about rain.", "Suggest a name for a grey cat.")
PINNED = "What are you a specialist in?"  # for an adapter that the table does not know


# The adapter that is copied in while the server runs.
DROPPED, WEIGHTS_OF = "bikes", "qa"
DROPPED_PROMPT = "Until when do I have to return the bike that I rented today?"
DROPPED_TOML = """\
[adapter]
name = "bikes"
version = "1.0.0"
description = "Questions to a shop that rents out bicycles."

[prompt]
system = "Answer from the passage in a few words."
template = \"\"\"
Answer the question from the passage.

Passage: Bikes are handed out from 9 am and have to be back by 8 pm. A city bike costs 14 euros a day, an \
electric bike 32 euros. The deposit is 50 euros. Helmets and locks are free. Flat tyres are mended for free.

Question: {prompt}\"\"\"

[generation]
max_tokens = 32

[routing]
examples = [
    "How late can I bring a rented bike back?",
    "What does a city bike cost for a day?",
    "Is there a deposit for renting a bicycle?",
    "What happens when I get a flat tyre on the tour?",
    "Are helmets included with the bikes that you rent out?",
    "May I take the rental bike on the train?",
    "Do you have e-bikes to rent at the weekend?",
    "Which cargo bike do I need for two children?",
]
"""


def requests_for(names: Sequence[str]) -> list[DemoRequest]:
    """For these adapters, and for the base. One that the table does not know is named in its request."""
    found = [DemoRequest(name, prompt) for name in names for prompt in PROMPTS.get(name, (PINNED,))]
    return found + [DemoRequest("", prompt) for prompt in BASE]
