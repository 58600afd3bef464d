"""`serve --replicas 2 --engine vllm` from outside, in an environment that has vLLM: see test_real.py."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection
from pathlib import Path

import pytest

from router.cli.demo import free_address
from router.client import AsyncClient, ClientError, Delta
from router.config import Settings
from router.engine.base import Job, Prompt
from router.engine.torch_engine import TorchEngine
from router.extensions.vllm import keeper
from router.registry.format.artifact import FolderRules, read_artifact
from router.registry.format.manifest import parse_manifest
from router.types import PromptTemplate, SamplingParams, TokenLogprob, Turn
from tests.extensions.vllm.real_failures import name_of
from tests.extensions.vllm.real_parity import ADAPTERS, NEAR, SHIPPED, gap, told

START_SECONDS, END_SECONDS = 400.0, 30.0
TOKENS, STREAMS, LONG = 24, 6, 120
OPTIONS = (
    "load_plugins=keywords,linear", "slots=4", "max_rank=16", "max_running=8", "cache_tokens=4096",
    "max_context=1024", "stall_seconds=60",
)  # fmt: skip


class Served:
    """A server over two vLLM replicas. `seen` has all processes that were found below it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.address = folder, free_address()
        sets = [word for option in OPTIONS for word in ("--set", option)]
        command = [sys.executable, "-m", "router.cli", "serve", "--replicas", "2", "--engine", "vllm"]
        command += ["--adapters-dir", str(ADAPTERS), "--listen", self.address, "--metrics-listen", ""]
        self.process = subprocess.Popen(
            [*command, *sets], cwd=folder, env=os.environ | {"TMPDIR": str(folder)}, start_new_session=True
        )
        self.seen: dict[int, str] = {}
        self.shared: set[str] = set()  # files of shared memory that they have mapped

    def look(self) -> list[int]:
        """The process ids of the replicas."""
        below = keeper.children_of(self.process.pid)
        for pid in below:
            self.seen.setdefault(pid, keeper.begun(pid))
            self.shared |= keeper.shared_files(pid)
        return [pid for pid in below if "replica\0--child" in name_of(pid)]

    def end(self) -> None:
        """Kill it, if it is still there; fails where anything of it is left."""
        self.look()
        self.process.kill()
        self.process.wait()
        end = time.monotonic() + 10
        while any(self.left) and time.monotonic() < end:
            time.sleep(0.1)
        assert self.left == ([], [])
        assert not [path for path in self.folder.iterdir() if "vllm" in path.name]

    @property
    def left(self) -> tuple[list[str], list[str]]:
        """Names of processes that are still there, and shared memory."""
        processes = [name_of(pid) for pid, start in self.seen.items() if start and keeper.begun(pid) == start]
        return processes, [name for name in sorted(self.shared) if Path(name).exists()]


async def up(client: AsyncClient, but: Collection[int], served: Served) -> None:
    """Until two replicas are up whose processes are none of `but`."""
    end = time.monotonic() + START_SECONDS
    while True:
        pids = served.look()
        try:
            states = [replica.state for replica in (await client.replicas.list()).replicas]
        except ClientError as error:
            states = [str(error)]
        if states == ["serving", "serving"] and len(pids) == 2 and not set(pids) & set(but):
            return
        assert time.monotonic() < end, states
        assert served.process.poll() is None
        await asyncio.sleep(1.0)


async def reference() -> list[tuple[str, str, list[TokenLogprob]]]:
    """Of the base and each shipped adapter: its name, one of its probes, and our engine's greedy answer."""
    ours = TorchEngine(Settings(dtype="float32", device="cpu", native=False, threads=1))
    await asyncio.to_thread(ours.start)
    found = []
    for name in ("base", *SHIPPED):
        folder = ADAPTERS / ("medical" if name == "base" else name)
        text = json.loads((folder / "probes.jsonl").read_text(encoding="utf-8").splitlines()[0])["prompt"]
        template, digest = PromptTemplate(), None
        if name != "base":
            artifact, _ = read_artifact(folder, FolderRules(ours.info))
            await ours.load(artifact)
            template = parse_manifest((folder / "adapter.toml").read_bytes(), folder.name)[0].prompt
            digest = artifact.digest
        tokens = ours.encode(Prompt((Turn("user", text),), template=template))
        found.append(
            (name, text, await told(ours, Job("r", tokens, SamplingParams(TOKENS, logprobs=2), digest)))
        )
    await asyncio.to_thread(ours.close)
    return found


async def check_parity(
    client: AsyncClient, wanted: Collection[tuple[str, str, Collection[TokenLogprob]]]
) -> None:
    """All answers are the reference's up to a near tie."""
    same = 0
    for name, text, tokens in wanted:
        answer = await client.generate(
            text, adapter=name, max_tokens=TOKENS, temperature=0.0, logprobs=2, unconstrained=True
        )
        same += agreeing(answer.logprobs, tokens)
    total = sum(len(tokens) for _, _, tokens in wanted)
    print(f"{same} of {total} tokens are the same")
    assert same > 0.7 * total


def agreeing(found: Collection[TokenLogprob], wanted: Collection[TokenLogprob]) -> int:
    """How many tokens are the same, up to the first that differs, which must be near a tie."""
    for at, (one, other) in enumerate(zip(found, wanted, strict=False)):
        if one.token_id != other.token_id:
            assert gap(other) < NEAR
            return at
    return min(len(found), len(wanted))


async def stream(client: AsyncClient, adapter: str, first: asyncio.Event) -> str | int:
    """How many tokens came, or the error's code."""
    tokens = 0
    try:
        async for event in client.stream(
            "Tell a long story.", adapter=adapter, max_tokens=LONG, min_tokens=LONG, unconstrained=True
        ):
            if isinstance(event, Delta):
                tokens += event.tokens
                first.set()
    except ClientError as error:
        return error.code
    return tokens


@pytest.mark.timeout(1500)
async def test_shipped_adapters_a_killed_replica_and_the_end(tmp_path: Path) -> None:
    wanted = await reference()
    served = Served(tmp_path)
    try:
        async with AsyncClient(served.address, timeout=START_SECONDS) as client:
            await up(client, (), served)
            await check_parity(client, wanted)
            first, names = asyncio.Event(), ("base", *SHIPPED)[:STREAMS]
            streams = [asyncio.create_task(stream(client, name, first)) for name in names]
            await first.wait()
            replica = served.look()[0]
            tree = (replica, *keeper.children_of(replica))
            for pid in tree:
                os.kill(pid, signal.SIGKILL)
            ended = await asyncio.gather(*streams)
            print(ended)
            assert set(ended) <= {LONG, "UNAVAILABLE"}
            assert LONG in ended
            await up(client, tree, served)
            await check_parity(client, wanted)
        served.process.send_signal(signal.SIGINT)
        assert await asyncio.to_thread(served.process.wait, END_SECONDS) == 0
    finally:
        await asyncio.to_thread(served.end)
