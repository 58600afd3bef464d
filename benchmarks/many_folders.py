"""`python -m benchmarks.many_folders [--counts 100 1000 10000]`: a server with thousands of adapter folders.

Everything but classification and the base, which is a fake one: the start with and without the state of an
earlier run, lists, new, changed and removed folders, memory, and what 50 light calls a second see meanwhile.
Each count is measured on servers of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import shutil
import sys
import tempfile
import time
from asyncio.events import Handle
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import grpc
import psutil
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub
from rich.progress import track

from benchmarks import report
from benchmarks.serving import used
from router.cli.demo import free_address
from router.client import AdapterState, AsyncClient, ClientError
from router.engine.fake import FakeEngine
from router.v1 import inference_pb2 as pb
from router.v1.inference_pb2_grpc import InferenceServiceStub
from tests.registry.cards import hand_in
from tests.registry.tiny import BASE, CONFIG, lora_tensors, safetensors

RANK, EXAMPLES, CHANGES = 2, 6, 5
RATE = 50  # light calls a second
START_SECONDS = 1800.0
NOTES = (
    "`callback`: the longest that one callback of the event loop kept the processor (thread time), `garbage` "
    "the longest collection, which may be a part of it. Other processes do not count.",
    "`late` (the event loop, asked every 5 ms) and `slowest call` are by the clock: on a busy machine they "
    "say more of it than of the server; `idle` shows how much.",
    "`new`, `change` and `removal` include what routing does with the set of adapters, without classifiers.",
)
TOPICS = ("contracts", "fevers", "ledgers", "engines", "gardens", "poems", "tariffs", "bridges", "proteins")
NAMED = "adapter-00000"
LINE_SECONDS, STEP_SECONDS = 0.2, 0.005
LAYERS, HIDDEN = 30, 576
SHAPES = {"q_proj": (HIDDEN, HIDDEN), "k_proj": (192, HIDDEN), "v_proj": (192, HIDDEN)}
SITES = {f"model.layers.{i}.self_attn.{name}": shape for i in range(LAYERS) for name, shape in SHAPES.items()}


# -- folders


def write_folders(root: Path, count: int, reports: bool) -> None:
    """`count` adapters of rank 2 with six examples each; the weights of each differ by one number."""
    weights = safetensors(lora_tensors(RANK, sites=SITES))
    for i in track(range(count), description="writing folders", transient=True):
        write_folder(root / f"adapter-{i:05}", i, weights, reports)


def write_folder(folder: Path, number: int, weights: bytes, reports: bool) -> None:
    """One adapter, described by words that no other one has."""
    folder.mkdir(parents=True)
    config = {**CONFIG, "r": RANK, "target_modules": ["q_proj", "k_proj", "v_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    own = b"".join(bytes([(number >> shift) & 15, 0, 0, 0x3C]) for shift in (0, 4, 8, 12))  # four numbers
    (folder / "adapter_model.safetensors").write_bytes(weights[: -len(own)] + own)
    (folder / "adapter.toml").write_text(manifest(folder.name, number))
    if reports:
        hand_in(folder)


def manifest(name: str, number: int, description: str = "") -> str:
    """adapter.toml, as trainers write it."""
    topic = TOPICS[number % len(TOPICS)]
    asked = [f"My {topic} number {number} fails at step {i}, please help with it" for i in range(EXAMPLES)]
    text = description or f"Answers about {topic} of series {number}"
    return (
        f'[adapter]\nname = "{name}"\nversion = "1.0.0"\ndescription = "{text}"\n'
        f'domain = "domain-{number % 97}"\n[routing]\n'
        f'keywords = ["{topic}{number}"]\nexamples = {json.dumps(asked)}\n'
    )


# -- a server, and what it says of itself


class Watch:
    """Measures the loop that it is started on, by wrapping how asyncio runs a callback.

    Every 0.2 s a line of JSON goes to `file`: how late the loop came back at worst (wall clock, so what other
    processes take counts), the longest that one callback kept the processor (thread time, so it does not),
    and the longest collection of garbage.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._late = self._longest = self._garbage = self._collecting = 0.0

    def start(self) -> None:
        """Begin to measure; on the event loop."""
        run = Handle._run  # type: ignore[attr-defined]

        def timed(handle: Handle) -> None:
            began = time.thread_time()
            run(handle)
            self._longest = max(self._longest, time.thread_time() - began)

        Handle._run = timed  # type: ignore[attr-defined]
        gc.callbacks.append(self._collected)
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._look()), loop.create_task(self._write())]

    def _collected(self, phase: str, _: dict[str, int]) -> None:
        now = time.thread_time()
        if phase == "stop":
            self._garbage = max(self._garbage, now - self._collecting)
        self._collecting = now

    async def _look(self) -> None:
        while True:
            due = time.monotonic() + STEP_SECONDS
            await asyncio.sleep(STEP_SECONDS)
            self._late = max(self._late, time.monotonic() - due)

    async def _write(self) -> None:
        with self._file.open("a", buffering=1) as file:
            while True:
                await asyncio.sleep(LINE_SECONDS)
                line = {"time": time.time(), "late": self._late, "callback": self._longest}
                line["garbage"] = self._garbage
                file.write(json.dumps(line) + "\n")
                self._late = self._longest = self._garbage = 0.0


def serve() -> int:
    """A server's process: `lora-router serve` on a fake engine, its event loop watched."""
    from router.cli import compose, engines, main

    engine = FakeEngine()
    engine._info = replace(BASE, context_length=2048, sites=SITES)
    engines.make_engine = lambda settings: engine  # type: ignore[assignment,return-value]
    engines.resolve_model = lambda name: None  # type: ignore[assignment,return-value]
    watch = Watch(Path(os.environ["WATCH_LOOP"]))
    start = compose.Composition._start

    async def watched(composition: compose.Composition) -> None:
        watch.start()
        await start(composition)

    compose.Composition._start = watched  # type: ignore[method-assign]
    return main.run()


@dataclass
class Server:
    """A process, and the file in which it tells of its event loop."""

    process: Process
    address: str
    watch: Path
    began: float

    @property
    def cpu(self) -> float:
        """Processor seconds so far."""
        return used(psutil.Process(self.process.pid))

    @property
    def memory(self) -> float:
        """Resident bytes."""
        return float(psutil.Process(self.process.pid).memory_info().rss)

    def loop(self, since: float) -> dict[str, float]:
        """Worst lateness of its loop and longest callback since then, seconds."""
        lines = [json.loads(line) for line in self.watch.read_text().splitlines()]
        seen = [line for line in lines if line["time"] >= since]
        return {
            key: max((line[key] for line in seen), default=0.0) for key in ("late", "callback", "garbage")
        }


@asynccontextmanager
async def serving(folder: Path, options: argparse.Namespace) -> AsyncIterator[Server]:
    """A server over `folder`/adapters, from the moment on at which it is started."""
    address, watch = free_address(), folder / f"loop-{time.monotonic_ns()}"
    watch.touch()
    (folder / "plugins").mkdir(exist_ok=True)
    flags = ["--listen", address, "--metrics-listen=", f"--set=gate={'strict' if options.reports else 'off'}"]
    flags += ["--set", "calibration=", "--set", "load_plugins=", "--set", "experiments="]
    flags += [f"--set={setting}" for setting in options.set]
    environment = {**os.environ, "WATCH_LOOP": str(watch), "XDG_STATE_HOME": str(folder / "state")}
    with (folder / "log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "benchmarks.many_folders", "serve", *flags),
            *("--adapters-dir", str(folder / "adapters"), "--plugins-dir", str(folder / "plugins")),
            stdout=log,
            stderr=log,
            env=environment,
        )
    try:
        yield Server(process, address, watch, time.time())
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def until(done: Callable[[], Awaitable[bool]], pause: float = 0.01, most: float = 120.0) -> float:
    """Seconds until `done`; infinite if that takes longer than `most` seconds."""
    began = time.monotonic()
    while time.monotonic() < began + most:
        if await done():
            return time.monotonic() - began
        await asyncio.sleep(pause)
    return float("inf")


async def is_serving(channel: grpc.aio.Channel) -> bool:
    """What health says."""
    try:
        answer = await HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
    except grpc.aio.AioRpcError:
        return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


@dataclass
class LightCalls:
    """50 calls a second, health and `Route` with a named adapter in turns; how long each took."""

    channel: grpc.aio.Channel
    seconds: list[tuple[float, float]] = field(default_factory=list)  # when it began, how long it took

    async def run(self) -> None:
        """Until cancelled; calls that hang hold up no others."""
        calls: set[asyncio.Task[None]] = set()
        try:
            while True:
                task = asyncio.create_task(self._one(len(self.seconds) % 2 == 0))
                calls.add(task)
                task.add_done_callback(calls.discard)
                await asyncio.sleep(1 / RATE)
        finally:
            for task in calls:
                task.cancel()

    async def _one(self, health: bool) -> None:
        began, clock = time.time(), time.monotonic()
        try:
            if health:
                await HealthStub(self.channel).Check(health_pb2.HealthCheckRequest(), timeout=60)
            else:
                routing = pb.Routing(adapter=f"adapters/{NAMED}")
                request = pb.RouteRequest(input=pb.Input(text="Hello"), routing=routing)
                await InferenceServiceStub(self.channel).Route(request, timeout=60)
        except grpc.aio.AioRpcError:
            clock = -float("inf")  # shows as a call that took for ever
        self.seconds.append((began, time.monotonic() - clock))

    def slowest(self, since: float) -> float:
        """Seconds of the slowest that began since then."""
        return max((took for began, took in self.seconds if began >= since), default=float("nan"))


# -- what is measured


async def started(
    server: Server, channel: grpc.aio.Channel, client: AsyncClient, count: int
) -> dict[str, float]:
    """From the start of the process until it serves, and until every folder was examined."""
    await until(lambda: is_serving(channel), 0.05, START_SECONDS)
    serving_after, cpu, memory = time.time() - server.began, server.cpu, server.memory

    async def examined() -> bool:
        return sum(a.rank > 0 and a.routable for a in await client.adapters.list(page_size=500)) >= count

    await until(examined, 1.0 + count / 2_000, START_SECONDS)
    return {
        "SERVING after, s": serving_after,
        "processor until then, s": cpu,
        "all examined and routable after, s": time.time() - server.began,
        "processor until all was examined, s": server.cpu,
        "resident when SERVING, MB": memory / 1e6,
        **{f"loop: {key}, ms": value * 1e3 for key, value in server.loop(server.began).items()},
    }


async def settled(server: Server, quiet: float = 0.15, most: float = 600.0) -> None:
    """Until it uses little of the processor, preloading and all."""
    end = time.monotonic() + most
    while time.monotonic() < end:
        before = server.cpu
        await asyncio.sleep(2)
        if server.cpu - before < 2 * quiet:
            return


async def listed(client: AsyncClient, count: int) -> float:
    """Seconds of all pages of the list."""
    began = time.monotonic()
    assert len(await client.adapters.list(page_size=500)) == count
    return time.monotonic() - began


async def listed_by_command(server: Server) -> float:
    """Seconds of `lora-router adapters list`, the start of Python counted."""
    began = time.monotonic()
    command = (sys.executable, "-m", "router.cli", "adapters", "list", "--server", server.address)
    child = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL)
    assert await child.wait() == 0
    return time.monotonic() - began


async def dropped_in(client: AsyncClient, root: Path, number: int, reports: bool) -> tuple[float, float]:
    """Seconds from the rename of a new folder until it is routable, and until it is READY."""
    name = f"new-{number}"
    weights = safetensors(lora_tensors(RANK, sites=SITES))
    write_folder(root / f".{name}", 50_000 + number, weights, False)
    (root / f".{name}/adapter.toml").write_text(manifest(name, 50_000 + number))
    if reports:
        hand_in(root / f".{name}")
    (root / f".{name}").rename(root / name)
    began = time.monotonic()
    await until(lambda: holds(client, name, lambda found: bool(found.routable)))
    known = time.monotonic() - began
    await until(lambda: holds(client, name, lambda found: found.state is AdapterState.READY), most=10)
    return known, time.monotonic() - began


async def changed(client: AsyncClient, root: Path, number: int) -> float:
    """Seconds from the change of an adapter.toml, by rename, until its description is seen."""
    name, text = f"adapter-{7 * number + 1:05}", f"changed {time.monotonic_ns()}"
    (root / name / ".new").write_text(manifest(name, 7 * number + 1, text))
    (root / name / ".new").replace(root / name / "adapter.toml")
    return await until(lambda: holds(client, name, lambda found: found.description == text))


async def removed(client: AsyncClient, root: Path, number: int) -> float:
    """Seconds from the removal of a folder until it is listed no longer."""
    shutil.rmtree(root / f"new-{number}")

    async def gone() -> bool:
        return not await holds(client, f"new-{number}", lambda _: True)

    return await until(gone)


async def holds(client: AsyncClient, name: str, what: Callable[[Any], bool]) -> bool:
    """Whether `what` is true of the adapter; False if there is none."""
    try:
        return what(await client.adapters.get(name))
    except ClientError:
        return False


async def measure(folder: Path, count: int, options: argparse.Namespace) -> dict[str, float]:
    """Both starts, and in the second server what happens while it serves."""
    shutil.rmtree(folder / "state", ignore_errors=True)
    rows: dict[str, float] = {}
    for start in ("cold", "warm"):
        async with (
            serving(folder, options) as server,
            grpc.aio.insecure_channel(server.address) as channel,
            AsyncClient(server.address) as client,
        ):
            found = await started(server, channel, client, count)
            print(start, json.dumps(found), flush=True)
            rows |= {f"{start}: {key}": value for key, value in found.items()}
            await settled(server)
            if start == "warm":
                rows |= await while_serving(folder / "adapters", server, channel, client, count, options)
    return rows


async def while_serving(
    root: Path,
    server: Server,
    channel: grpc.aio.Channel,
    client: AsyncClient,
    count: int,
    options: argparse.Namespace,
) -> dict[str, float]:
    """Lists and changes, with light calls beside them."""
    light = LightCalls(channel)
    beside = asyncio.create_task(light.run())
    rows: dict[str, float] = {"resident at rest, MB": server.memory / 1e6}

    async def meanwhile(name: str, work: Callable[[int], Awaitable[Any]], times: int = CHANGES) -> list[Any]:
        since, cpu = time.time(), server.cpu
        found = [await work(i) for i in range(times)]
        await asyncio.sleep(0.5)
        seen = {"slowest call": light.slowest(since), **server.loop(since)}
        rows.update({f"{name}: {key}, ms": value * 1e3 for key, value in seen.items()})
        rows[f"{name}: processor, s"] = (server.cpu - cpu) / times
        return found

    await meanwhile("idle", lambda _: asyncio.sleep(2))
    lists = await meanwhile("list", lambda _: listed(client, count))
    commands = await meanwhile("command", lambda _: listed_by_command(server), 2)
    news = await meanwhile("new", lambda i: dropped_in(client, root, i, options.reports))
    changes = await meanwhile("change", lambda i: changed(client, root, i))
    removals = await meanwhile("removal", lambda i: removed(client, root, i))
    beside.cancel()
    await asyncio.wait({beside})
    return rows | {
        "list, s": median(lists),
        "`adapters list`, s": median(commands),
        "new folder routable after, s": median(known for known, _ in news),
        "the slowest of them, s": max(known for known, _ in news),
        "new folder READY after, s": median(ready for _, ready in news),
        "change seen after, s": median(changes),
        "removal seen after, s": median(removals),
    }


def main() -> None:
    """Write the folders, measure, write results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", type=int, nargs="+", default=[100, 1_000, 10_000])
    parser.add_argument("--folder", type=Path, help="where the adapters are kept for the next run")
    parser.add_argument("--reports", action="store_true", help="with report cards, and the gate on")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting")
    options = parser.parse_args()
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for count in options.counts:
            folder = (options.folder or Path(scratch)) / f"{count}{'-reports' * options.reports}"
            if not (folder / "adapters").is_dir():
                write_folders(folder / "adapters", count, options.reports)
            for what, value in asyncio.run(measure(folder, count, options)).items():
                rows.setdefault(what, {"what": what})[str(count)] = value
            print(report.table(list(rows.values())), flush=True)
    gate = "with report cards" if options.reports else "gate off"
    workload = (
        f"Adapters of rank {RANK} with {EXAMPLES} examples each, {gate}, a fake base; {RATE} light calls a "
        f"second. {CHANGES} new, changed and removed folders one after another."
    )
    print("written to", report.write("many-folders", workload, list(rows.values()), NOTES))


if __name__ == "__main__":
    if "WATCH_LOOP" in os.environ:
        sys.exit(serve())
    main()
