"""Callers of a soak, in a process of their own: `python -m tests.soak.traffic FOLDER ADDRESS [...]`.

Prints a line of JSON a second with what became of all calls so far; ends at SIGTERM, or after --count
answers. What became of a call is one of: ok (and the answer is right), refused (as it should be), unknown
(asked three times under one id and still not known), wrong (an answer that is not its caller's), error
(anything else).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from router.client import ClientError
from router.client.aio import AsyncAdapters, AsyncConnection
from router.client.calls import Call
from router.client.channel import channel_options
from router.extensions.experiments.client import AsyncExperiments, Outcome
from router.v1 import inference_pb2 as pb
from router.v1.inference_pb2_grpc import InferenceServiceStub
from tests.soak.changes import Changes
from tests.soak.checks import BASE, Alone, Answered, NamedAnswers, SentRequest, Truth, problem
from tests.soak.journal import Journal
from tests.soak.prompts import PROMPTS
from tests.soak.world import ADMIN, ALL, ASKING, BOUNDED, GUEST, ROTATING, World, asked_text

PATIENCE = 60.0  # seconds for a call on a busy machine
TRIES = 3  # of a call whose end is not known
SHORT = (0.001, 0.03)  # deadlines that many calls miss
MAX_TOKENS = {"fake": 64, "real": 8}
REFUSED_SECONDS = 0.05  # before a client that was refused asks again
KEPT_PROBLEMS = 20
USERS = 500
MIXES: dict[str, dict[str, float]] = {
    "soak": {"generate": 0.6, "leave": 0.15, "hurry": 0.1, "route": 0.1, "change": 0.05},
    "answers": {"generate": 0.8, "stream": 0.2},
    "leave": {"leave": 1.0},  # one kind alone, to see what it is that grows
    "hurry": {"hurry": 1.0},
    "route": {"route": 1.0},
}


class Tally:
    """What became of the calls, and the first problems in words."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.problems: list[str] = []
        self.reasons: Counter[str] = Counter()  # why answers came from where they came

    def add(self, kind: str, became: str, text: str = "") -> None:
        """One call; `text` is what was wrong."""
        self.counts[f"{kind} {became}"] += 1
        if became in ("wrong", "error", "unknown") and len(self.problems) < KEPT_PROBLEMS:
            self.problems.append(f"{kind} {became}: {text}")

    @property
    def answers(self) -> int:
        """Whole answers that were checked."""
        return sum(self.counts[f"{kind} {end}"] for kind in ("generate", "stream") for end in ("ok", "wrong"))

    def line(self) -> str:
        """All of it as JSON."""
        return json.dumps({"counts": self.counts, "problems": self.problems, "reasons": self.reasons})


@dataclass
class Load:
    """What all callers of the process share."""

    options: argparse.Namespace
    journal: Journal
    truth: Truth
    tally: Tally
    stop: asyncio.Event

    @property
    def over(self) -> bool:
        """Whether to begin no further call."""
        return self.stop.is_set() or 0 < self.options.count <= self.tally.answers


class Caller:
    """One client on a connection of its own, which asks, checks, and asks again."""

    def __init__(self, load: Load, number: int, changes: Changes | None) -> None:
        self._load, self._changes = load, changes
        self._random = random.Random(f"{load.options.seed} {number}")
        self.id = ASKING[number % len(ASKING)]
        self._real = load.options.engine == "real"
        options = [*channel_options(load.options.address), ("grpc.use_local_subchannel_pool", 1)]
        self.channel = grpc.aio.insecure_channel(load.options.address, options=options)
        self._stub: Any = InferenceServiceStub(self.channel)  # type: ignore[no-untyped-call]
        self._kinds: dict[str, Callable[[str], Awaitable[None]]] = {
            "generate": self._generate,
            "hurry": self._generate,
            "stream": self._stream,
            "leave": self._stream,
            "route": self._route,
            "change": self._change,
        }

    async def run(self) -> None:
        """Until it is over."""
        mix = MIXES[self._load.options.mix]
        names, weights = list(mix), list(mix.values())
        while not self._load.over:
            (kind,) = self._random.choices(names, weights)
            try:
                await self._kinds[kind](kind)
            except (KeyError, ValueError, OSError) as raised:  # of this program: it must not end the run
                self._load.tally.add(kind, "error", repr(raised))
            if self._load.options.pause:
                await asyncio.sleep(self._random.expovariate(1 / self._load.options.pause))
        await self.channel.close()

    # -- kinds of calls

    async def _generate(self, kind: str) -> None:
        asked = self._asked()
        request, first = self._request(asked, pb.GenerateRequest), PATIENCE
        if kind == "hurry":
            first = self._random.uniform(*SHORT)

        async def call(caller: AsyncConnection, request_id: str, timeout: float) -> tuple[Any, str, bool]:
            options = {"request_id": request_id, "timeout": timeout}
            call = Call("Generate", request, options, lambda message: message)
            message = await caller.answer(self._stub, call)
            return message, message.text, True

        if (message := await self._checked(kind, asked, call, first)) is not None:
            await self._outcome(message)

    async def _stream(self, kind: str) -> None:
        asked = self._asked()
        request = self._request(asked, pb.StreamGenerateRequest)
        most = self._random.randint(0, 5) if kind == "leave" else 1 << 30

        async def call(caller: AsyncConnection, request_id: str, timeout: float) -> tuple[Any, str, bool]:
            options = {"request_id": request_id, "timeout": timeout}
            started, text, read, whole = None, "", 0, False
            call = Call("StreamGenerate", request, options, lambda event: [event])
            async with aclosing(caller.answers(self._stub, call)) as events:  # type: ignore[type-var]
                async for event in events:
                    if event.HasField("started"):
                        started = event.started
                    text += event.delta.text
                    whole, read = event.HasField("finished"), read + 1
                    if read > most:
                        break
            return started, text, whole

        await self._checked(kind, asked, call, PATIENCE)

    async def _checked(
        self,
        kind: str,
        asked: SentRequest,
        call: Callable[[AsyncConnection, str, float], Awaitable[tuple[Any, str, bool]]],
        timeout: float,
    ) -> Any | None:
        """Make a call, again under the same id where its end is not known, and count it once."""
        tally, journal, request_id = self._load.tally, self._load.journal, uuid.uuid4().hex
        for attempt in range(TRIES):
            start = time.monotonic()
            try:
                message, text, whole = await call(self._caller(), request_id, timeout)
            except ClientError as error:
                became = self._became(error, asked)
                if became == "unknown" and attempt < TRIES - 1:
                    tally.add(kind, "retried")
                    timeout = PATIENCE
                    continue
                tally.add(kind, became, f"{asked.client} {asked.adapter}: {error.reason} {error}")
                await asyncio.sleep(REFUSED_SECONDS)
                return None
            journal.read()
            got = _answered(message, text, start, time.monotonic(), whole)
            found = problem(journal, self._load.truth, asked, got)
            tally.add(kind, "wrong" if found else "ok", found)
            tally.reasons[_why(message.decision)] += 1
            return message
        return None

    async def _route(self, kind: str) -> None:
        asked = self._asked()
        said = self._request(asked, pb.GenerateRequest)
        request = pb.RouteRequest(input=said.input, routing=said.routing)
        start = time.monotonic()
        try:
            call = Call("Route", request, {"timeout": PATIENCE}, lambda answer: answer)
            answer = await self._caller().answer(self._stub, call)
        except ClientError as error:
            self._load.tally.add(kind, self._became(error, asked), f"{asked.client} {asked.adapter}: {error}")
            return
        self._load.journal.read()
        decision, journal = answer.decision, self._load.journal
        named = [decision.adapter, *(name for vote in decision.votes for name in vote.scores)]
        names = {_split(name)[0] for name in named if name}
        end = time.monotonic()
        hidden = [name for name in names if not journal.may_see(asked.client, name, start, end)]
        self._load.tally.add(kind, "wrong" if hidden else "ok", f"{asked.client} was told of {hidden}")

    async def _outcome(self, message: Any) -> None:
        """Of some answers in an experiment: whether it solved the user's problem."""
        if not message.decision.experiment or self._random.random() < 0.5:
            return
        value = float(self._random.random() < 0.5)
        outcome = Outcome("solved", value, response_id=message.response_id, key=uuid.uuid4().hex)
        for attempt in range(TRIES):
            try:
                experiments = AsyncExperiments(self._caller())
                status = await experiments.record_outcome(outcome, timeout=PATIENCE)
            except ClientError as error:
                known = error.code == "NOT_FOUND"  # its exposure is still on the way to the store
                became = "refused" if known else self._became(error, SentRequest(self.id, ""))
                if became == "unknown" and attempt < TRIES - 1:
                    self._load.tally.add("outcome", "retried")
                    continue
                self._load.tally.add("outcome", became, str(error))
            else:
                self._load.tally.add("outcome", "ok" if status is not None else "error", "no status")
            return

    async def _change(self, kind: str) -> None:
        """An administrator's act."""
        if self._changes is None:
            raise ValueError("only the process that may change adapters is asked to")
        admin = AsyncAdapters(self._caller(ADMIN))
        act, became, text = await self._changes.act(admin, self._random)
        self._load.tally.add(act, became, text)

    # -- what is asked, and by whom

    def _asked(self) -> SentRequest:
        draw = self._random
        prompt = draw.choice(PROMPTS) if self._real else asked_text(draw, self.id)
        user = f"user-{draw.randrange(USERS)}"
        adapter, chance = "", draw.random()
        if chance < 0.6:  # anyone who may not know of it has to be told that there is no such adapter
            name, version = draw.choice(ALL)
            visible = name in self._load.journal.entry(self.id).adapters
            if visible or chance < 0.1:
                adapter = f"{name}@{version}" if chance < 0.3 else name
        elif chance < 0.7:
            adapter = BASE
        return SentRequest(self.id, prompt, adapter, user)

    def _request(self, asked: SentRequest, kind: Any) -> Any:
        name, _, version = asked.adapter.partition("@")
        resource = f"adapters/{name}" + (f"/versions/{version}" if version else "") if name else ""
        return kind(
            input=pb.Input(text=asked.prompt),
            sampling=pb.Sampling(max_tokens=MAX_TOKENS[self._load.options.engine], temperature=0.0),
            routing=pb.Routing(adapter=resource, unit=asked.user),
        )

    def _caller(self, client: str = "") -> AsyncConnection:
        self._load.journal.read()
        return AsyncConnection(self.channel, PATIENCE, self._load.journal.entry(client or self.id).token)

    def _became(self, error: ClientError, asked: SentRequest) -> str:
        """Refused where this client had to expect it, unknown where nothing is known, else an error."""
        if error.code in ("DEADLINE_EXCEEDED", "CANCELLED") or error.unreachable:
            return "unknown"
        hidden = asked.adapter.partition("@")[0] not in self._load.journal.entry(asked.client).adapters
        expected = {
            "ADAPTER_NOT_FOUND": bool(asked.adapter) and (hidden or asked.client == ROTATING),
            "QUOTA": asked.client in (BOUNDED, GUEST, "south-1"),  # a tenant's clients share theirs
            "TOKEN_INVALID": asked.client == GUEST,
            "UNAVAILABLE": asked.client == ROTATING,  # what it may know of changed during the call
        }
        return "refused" if expected.get(error.reason, False) else "error"


def _split(resource: str) -> tuple[str, str]:
    """`adapters/NAME/versions/VERSION`, or NAME alone, as name and version."""
    parts = resource.removeprefix("adapters/").split("/")
    return parts[0], parts[2] if len(parts) > 2 else ""


def _why(decision: Any) -> str:
    if decision.experiment:
        return "experiment"
    return pb.DecisionReason.Name(decision.reason).removeprefix("DECISION_REASON_").lower()


def _answered(message: Any, text: str, start: float, end: float, whole: bool) -> Answered:
    name, version = _split(message.decision.adapter)
    return Answered(message.response_id, name, version, message.decision.digest, text, start, end, whole)


async def run(options: argparse.Namespace) -> Tally:
    """All callers until the end; the process with `--changes` leaves everything as it was."""
    world = World(options.folder, options.engine == "real")
    world.take_over()
    truth: Truth = NamedAnswers(joint=options.mix == "answers")
    if options.engine == "real":
        texts = json.loads((options.folder / "alone.json").read_text())
        truth = Alone({(weights, prompt): text for weights, prompt, text in texts})
    load = Load(options, world.journal, truth, Tally(), asyncio.Event())
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, load.stop.set)
    changes = Changes(world, load.tally.add) if options.changes else None
    print(load.tally.line(), flush=True)  # anyone who started this may end it from now on
    callers = [Caller(load, options.first + number, changes) for number in range(options.clients)]
    around = [asyncio.create_task(_tell(load.tally))]
    if changes is not None:
        around.append(asyncio.create_task(changes.run(options.address, options.mix == "answers")))
    await asyncio.gather(*(caller.run() for caller in callers))
    for task in around:
        task.cancel()
    ended = await asyncio.gather(*around, return_exceptions=True)
    for raised in ended:
        if not isinstance(raised, asyncio.CancelledError):
            load.tally.add("changes", "error", repr(raised))
    if changes is not None:
        await changes.calm(options.address)
    return load.tally


async def _tell(tally: Tally) -> None:
    while True:
        await asyncio.sleep(1)
        print(tally.line(), flush=True)


def parser() -> argparse.ArgumentParser:
    """What the process takes."""
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("folder", type=Path)
    made.add_argument("address")
    made.add_argument("--engine", choices=("fake", "real"), default="fake")
    made.add_argument("--mix", choices=tuple(MIXES), default="soak")
    made.add_argument("--clients", type=int, default=16)
    made.add_argument("--first", type=int, default=0, help="number of the first client")
    made.add_argument("--count", type=int, default=0, help="answers to check; 0: until SIGTERM")
    made.add_argument("--pause", type=float, default=0.0, help="mean seconds between calls of a client")
    made.add_argument("--seed", type=int, default=os.getpid())
    made.add_argument("--changes", action="store_true", help="change adapters and clients meanwhile")
    return made


def main() -> None:
    """Run, and tell all once more at the end."""
    print(asyncio.run(run(parser().parse_args())).line(), flush=True)


if __name__ == "__main__":
    main()
