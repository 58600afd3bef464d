"""Bad calls against a whole server on the fake engine: any method, any bytes, odd metadata.

Whatever comes, the answer is a status that says whose fault it was, soon, and tells nothing of the server's
inside; and the server serves on.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import count, takewhile
from pathlib import Path
from random import Random
from typing import Any

import grpc
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from router.cli.compose import Composition
from router.config import Settings
from router.engine.fake import FakeEngine
from router.extensions.kserve.service import ROWS as KSERVE
from router.kserve import open_inference_pb2
from router.plugins.tables import read_tables
from router.server.app import ServerApp
from router.v1 import adapters_pb2, experiments_pb2, fleet_pb2, inference_pb2
from tests.fuzz.engines import Tally
from tests.fuzz.inputs import TEXTS, bytes_changed, message_changed
from tests.fuzz.targets import ROOT, Attempt
from tests.registry.tiny import BASE, write_adapter
from tests.security.helpers import ROWS

MODULES = (
    *(inference_pb2, adapters_pb2, fleet_pb2, experiments_pb2),
    *(open_inference_pb2, health_pb2, reflection_pb2),
)
WRONG = (
    "/router.v1.InferenceService/Nope",
    "/router.v1.InferenceService/generate",
    "/x",
    "//",
    "/a/b/c",
    "/\x7f/y",
)
LAST = ("WatchAdapters", "Watch", "ServerReflectionInfo", "RecordOutcomes")  # as long as the caller wants
KEYS = (
    "authorization",
    "x-request-id",
    "traceparent",
    "x-odd",
    "x-odd-bin",
    "user-agent",
    "te",
    "content-type",
)
SECONDS = 20.0  # until a call that has not ended is a finding
INSIDE = ("Traceback", "site-packages", str(ROOT), ".py", "object at 0x", "sqlite")
FAULTS = (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL, grpc.StatusCode.DATA_LOSS)
# Said by the client's library, which wrote to a call that had ended.
OUR_OWN = ("Internal error from Core", "Locally cancelled by application!")
AT_ONCE = 8


class TinyEngine(FakeEngine):
    """A base with the layers that the adapters here are for."""

    @property
    def info(self) -> Any:
        """Of the fake, with layers."""
        return replace(super().info, sites=BASE.sites, vocab_size=BASE.vocab_size, name=BASE.name)


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[ServerApp]:
    """A server with registry, routing and experiments on a disk, two adapters in it."""
    for name in ("medical", "legal"):
        write_adapter(folder / "adapters" / name, adapter_toml=f'[adapter]\nname = "{name}"\n')
    settings = Settings(
        listen="127.0.0.1:0",
        metrics_listen="",
        adapters_dir=(folder / "adapters",),
        plugins_dir=(ROOT / "examples" / "plugins",),
        load_plugins="urgent_words",
        calibration="",
        gate="off",
        database=f"sqlite:///{folder}/experiments.db",
        lame_duck_seconds=0.0,
        drain_seconds=1.0,
    ).with_tables(read_tables(Path(), {}, {"kserve.enabled": True, "feedback.keep": "texts"}))
    made = Composition(settings, TinyEngine())
    try:
        await made.app.start()
        await made.app.ready.wait()
        yield made.app
    finally:
        await made.app.stop()
        await made.router.close()
        await made.registry.close()


def kinds() -> dict[str, type[Message]]:
    """The message that each method takes."""
    found = {
        f"/{service.full_name}/{method.name}": GetMessageClass(method.input_type)
        for module in MODULES
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    methods = sorted((*ROWS, *KSERVE))
    return {method: found.get(method, reflection_pb2.ServerReflectionRequest) for method in methods}


KINDS = kinds()


def bodies(method: str, random: Random) -> list[bytes]:
    """What is sent: messages that are nearly right, junk, several, or none."""
    made = []
    for _ in range(random.choice((0, 1, 1, 1, 1, 1, 2, 5))):
        kind = KINDS.get(method)
        if kind is None or random.randint(0, 9) == 0:
            made.append(bytes(random.randint(0, 255) for _ in range(random.choice((0, 1, 5, 300)))))
            continue
        wire = message_changed([kind])(b"", random)[1:]
        made.append(bytes_changed(wire, random) if random.randint(0, 5) == 0 else wire)
    return made


def metadata(random: Random) -> list[tuple[str, str | bytes]]:
    """Keys that the server reads and some that it does not, with values that a client can send."""
    found: list[tuple[str, str | bytes]] = []
    for _ in range(random.choice((0, 0, 1, 3, 40))):
        key = random.choice(KEYS[:5])
        text = "".join(char for char in random.choice((*TEXTS, "Bearer x", "y" * 300)) if " " <= char <= "~")
        found.append((key, text.encode() if key.endswith("-bin") else text.strip()))
    return found


async def call(channel: grpc.aio.Channel, random: Random) -> tuple[Attempt, bytes]:
    """One bad call; seconds on the clock, and what was sent."""
    method = random.choice(WRONG) if random.randint(0, 19) == 0 else random.choice(list(KINDS))
    sent, said = bodies(method, random), metadata(random)
    lasts = method.rpartition("/")[2] in LAST
    start, wrong = time.monotonic(), ""
    open_call = channel.stream_stream(method)(iter(sent), timeout=0.1 if lasts else SECONDS, metadata=said)
    try:
        async for _ in open_call:
            pass
        trailers, told = await open_call.trailing_metadata(), ""
    except grpc.aio.AioRpcError as error:
        trailers, told = error.trailing_metadata(), error.details() or ""
        if error.code() in FAULTS and told not in OUR_OWN:
            wrong = f"{error.code().name} from {method}: {told}"
        elif error.code() is grpc.StatusCode.DEADLINE_EXCEEDED and not lasts:
            wrong = f"no answer from {method}: in {SECONDS:g} s"
    except asyncio.CancelledError:
        if not open_call.done():  # it is we who are to end
            raise
        trailers, told = await open_call.trailing_metadata(), await open_call.details()
        wrong = "" if told in OUR_OWN else f"CANCELLED from {method}: {told}"
    outside = told + " ".join(str(value) for _, value in trailers or ())
    if leaked := next((inside for inside in INSIDE if inside in outside), ""):
        wrong = wrong or f"leak of {leaked} by {method}: {outside[:200]}"
    seconds = 0.0 if lasts else time.monotonic() - start
    return Attempt(seconds, wrong), f"{method} {sent!r} {said!r}".encode()


async def alive(channel: grpc.aio.Channel) -> bool:
    """Whether a good request is answered."""
    good = inference_pb2.GenerateRequest(input=inference_pb2.Input(text="one two"))
    answer = await channel.unary_unary("/router.v1.InferenceService/Generate")(
        good.SerializeToString(), timeout=30
    )
    return bool(inference_pb2.GenerateResponse.FromString(answer).text)


async def bombard(app: ServerApp, seeds: Iterator[int], tally: Tally) -> None:
    """A call for each seed, several at once; the server answers afterwards and holds nothing."""

    async def work(channel: grpc.aio.Channel) -> None:
        for seed in seeds:
            attempt, sent = await call(channel, Random(seed))
            tally.add(sent, attempt)

    async with grpc.aio.insecure_channel(app.address) as channel:
        await asyncio.gather(*(work(channel) for _ in range(AT_ONCE)))
        if not await alive(channel):
            tally.add(b"", Attempt(0.0, "the server does not answer any more"))
    for _ in range(200):
        if app.admission.in_flight == 0:
            return
        await asyncio.sleep(0.05)
    tally.add(b"", Attempt(0.0, f"calls are left: {app.admission.in_flight}"))


async def for_seconds(seconds: float) -> Tally:
    """Bad calls for so long."""
    tally = Tally()
    with tempfile.TemporaryDirectory() as folder:
        async with serving(Path(folder)) as app:
            start = time.monotonic()
            until = takewhile(lambda _: time.monotonic() - start < seconds, count(time.time_ns()))
            await bombard(app, until, tally)
            tally.seconds = time.monotonic() - start
    return tally
