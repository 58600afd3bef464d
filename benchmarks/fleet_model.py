"""A fleet as events: requests, steps and loads in simulated seconds; no engine runs.

A replica batches up to `rows` requests. What a step costs is measured (`Costs`, by
`benchmarks.step_times`); as long as nobody comes or goes all steps cost the same, so many of them are one
event. An adapter that is not in a replica's memory is loaded while its requests wait, and the least
recently used one makes room.
"""

from __future__ import annotations

import heapq
import itertools
import json
import math
import random
from collections import Counter, OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, quantiles
from typing import Any, Protocol

from benchmarks.report import RESULTS

STEP_TIMES = RESULTS / "step-times.json"
BEGIN = 0.5
STEP_TOKENS = 512  # of answers and prompts in one step, as the engine's `max_step_tokens`


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds that things take. `source` says where and when they were measured."""

    base: float  # a step, whatever is in it
    row: float  # more for each answer in it
    adapter: float  # and for each adapter among them
    token: float  # and for each token of a prompt
    load: float  # until an adapter that was not there is there
    held: float = 0.0  # by which a load makes the steps beside it longer, all together
    source: str = ""

    @classmethod
    def read(cls, path: Path = STEP_TIMES) -> Costs:
        """Those that were measured last."""
        found = json.loads(path.read_text())
        return cls(**found["costs"], source=f"{found['hardware']['cpu']}, {found['date']} ({path.name})")

    def step(self, rows: int, adapters: int, prompt: int) -> float:
        """One of so many answers that get a token, adapters, and tokens of prompts."""
        return self.base + self.row * rows + self.adapter * adapters + self.token * prompt


@dataclass(frozen=True, slots=True)
class Shape:
    """How large all is. Rows, slots, memory (adapters) and queue are a replica's."""

    adapters: int = 2000
    replicas: int = 4
    rows: int = 32
    slots: int = 32
    memory: int = 400
    queue: int = 256
    prompt: int = 90  # tokens
    answer: int = 64
    exponent: float = 1.0  # of Zipf's law


@dataclass(eq=False, slots=True)
class Request:
    """One, from its arrival on."""

    adapter: str
    edge: int
    came: float
    at: str = ""
    prompt: int = 0  # tokens that are to be read
    ends: int = 0  # once its machine has made so many steps


@dataclass(eq=False, slots=True)
class Machine:
    """A replica: who runs and waits, what is in memory, what on the device."""

    name: str
    speed: float = 1.0
    running: list[Request] = field(default_factory=list)
    waiting: deque[Request] = field(default_factory=deque)
    coming: dict[str, list[Request]] = field(default_factory=dict)  # who waits for a load
    memory: OrderedDict[str, None] = field(default_factory=OrderedDict)
    device: OrderedDict[str, None] = field(default_factory=OrderedDict)
    held: int = 0
    steps: int = 0
    tokens: int = 0
    together: Counter[int] = field(default_factory=Counter)  # steps by adapters in them
    turn: int = 0  # which of its events counts
    since: float = 0.0  # when its steps began, what each takes, and how many there are until somebody goes
    each: float = 0.0
    ahead: int = 0
    owed: float = 0.0  # by loads


class Policy(Protocol):
    """Who answers a request: one edge's way to see it."""

    def choose(self, request: Request, machines: dict[str, Machine], now: float) -> str:
        """The machine, which has the adapter in memory or will load it."""
        ...

    def ended(self, request: Request, now: float) -> None:
        """A request was answered."""
        ...


class Simulation:
    """Edges, a policy for each, under one stream of requests."""

    def __init__(
        self, edges: Sequence[Policy], shape: Shape, costs: Costs, seed: int, slow: str = ""
    ) -> None:
        """`slow` names a machine of a tenth of the speed."""
        self._edges, self._shape, self._costs = edges, shape, costs
        self._draw = random.Random(seed)
        names = [str(i) for i in range(shape.replicas)]
        self.machines = {name: Machine(name, 0.1 if name == slow else 1.0) for name in names}
        self._adapters = [f"adapter-{i}" for i in range(shape.adapters)]
        self._draw.shuffle(self._adapters)
        self._weights = list(itertools.accumulate(i**-shape.exponent for i in range(1, shape.adapters + 1)))
        self._events: list[tuple[float, int, str, Any]] = []
        self._ties = itertools.count()
        self.in_memory = self.on_device = self.asked = 0
        self.firsts: list[float] = []
        self.measured_from = 0.0

    def run(self, clients: int, warm: float, seconds: float) -> None:
        """A closed loop: each client asks again when it was answered; all have asked after BEGIN seconds."""
        self.measured_from, end = warm, warm + seconds
        for number in range(clients):
            self._at(self._draw.random() * BEGIN, "ask", number % len(self._edges))
        acts = {name: getattr(self, f"_{name}") for name in ("ask", "loaded", "step")}
        while self._events and self._events[0][0] < end:
            now, _, kind, what = heapq.heappop(self._events)
            acts[kind](what, now)

    # -- events

    def _at(self, when: float, kind: str, what: Any) -> None:
        heapq.heappush(self._events, (when, next(self._ties), kind, what))

    def _ask(self, edge: int, now: float) -> None:
        (adapter,) = self._draw.choices(self._adapters, cum_weights=self._weights)
        self._send(Request(adapter, edge, now), now)

    def _loaded(self, what: tuple[Machine, str], now: float) -> None:
        machine, adapter = what
        for request in machine.coming.pop(adapter, ()):
            self._queue(machine, request, now)

    def _step(self, what: tuple[Machine, int], now: float) -> None:
        machine, turn = what
        if turn == machine.turn:
            self._computed(machine, now)
            self._go_on(machine, now)

    # -- a request and its machine

    def _send(self, request: Request, now: float) -> None:
        request.at = self._edges[request.edge].choose(request, self.machines, now)
        machine, adapter = self.machines[request.at], request.adapter
        machine.held += 1
        if now >= self.measured_from:
            self.asked += 1
            self.in_memory += adapter in machine.memory and adapter not in machine.coming
            self.on_device += adapter in machine.device
        if adapter in machine.memory:
            machine.memory.move_to_end(adapter)
        else:
            self._load(machine, adapter, now)
        if adapter in machine.coming:
            machine.coming[adapter].append(request)
        else:
            self._queue(machine, request, now)

    def _load(self, machine: Machine, adapter: str, now: float) -> None:
        keep(machine.memory, adapter, self._shape.memory)
        machine.coming.setdefault(adapter, [])
        machine.owed += self._costs.held
        self._at(now + self._costs.load, "loaded", (machine, adapter))

    def _queue(self, machine: Machine, request: Request, now: float) -> None:
        request.prompt = self._shape.prompt
        machine.waiting.append(request)
        if not machine.running:
            self._go_on(machine, now)
        elif machine.ahead > 1 and len(machine.running) < self._shape.rows:
            made = max(1, math.ceil((now - machine.since) / machine.each - 1e-9))
            if made < machine.ahead:  # it is let in after the step that runs now
                machine.ahead = made
                self._expect(machine)

    def _go_on(self, machine: Machine, now: float) -> None:
        """Who has its answer leaves, who waits comes in, and the next steps begin."""
        for request in [r for r in machine.running if not r.prompt and r.ends <= machine.steps]:
            machine.running.remove(request)
            machine.held -= 1
            self._edges[request.edge].ended(request, now)
            self._at(now, "ask", request.edge)
        while machine.waiting and len(machine.running) < self._shape.rows:
            machine.running.append(machine.waiting.popleft())
        if not machine.running:
            return
        answers = [request for request in machine.running if not request.prompt]
        prompt = min(STEP_TOKENS - len(answers), sum(request.prompt for request in machine.running))
        adapters = {request.adapter for request in machine.running}
        for adapter in adapters:
            keep(machine.device, adapter, self._shape.slots)
        machine.since, machine.owed, owed = now, 0.0, machine.owed
        took = self._costs.step(len(answers), len(adapters), prompt) + owed
        machine.each = took / machine.speed
        machine.ahead = 1 if prompt or owed else min(request.ends for request in answers) - machine.steps
        self._expect(machine)

    def _expect(self, machine: Machine) -> None:
        machine.turn += 1
        self._at(machine.since + machine.ahead * machine.each, "step", (machine, machine.turn))

    def _computed(self, machine: Machine, now: float) -> None:
        machine.steps += machine.ahead
        answering, left = 0, STEP_TOKENS
        for request in machine.running:
            answering += not request.prompt
        left -= answering
        for request in machine.running:
            if request.prompt and left:
                read = min(left, request.prompt)
                left, request.prompt = left - read, request.prompt - read
                if not request.prompt:
                    answering += 1
                    self._began(request, machine, now)
        if now >= self.measured_from:
            machine.tokens += answering * machine.ahead
            machine.together[len({r.adapter for r in machine.running})] += machine.ahead

    def _began(self, request: Request, machine: Machine, now: float) -> None:
        request.ends = machine.steps + self._shape.answer - 1
        if request.came >= self.measured_from:
            self.firsts.append(now - request.came)


def keep(kept: OrderedDict[str, None], name: str, most: int) -> None:
    """The most recently used `most`."""
    kept[name] = None
    kept.move_to_end(name)
    while len(kept) > most:
        kept.popitem(last=False)


def outcome(simulation: Simulation, seconds: float) -> dict[str, float]:
    """The result of one run."""
    machines = simulation.machines.values()
    tokens = [machine.tokens for machine in machines]
    steps = sum(sum(machine.together.values()) for machine in machines)
    together = sum(count * times for machine in machines for count, times in machine.together.items())
    cuts = quantiles(simulation.firsts, n=100)
    return {
        "tokens/s": sum(tokens) / seconds,
        "in memory": simulation.in_memory / simulation.asked,
        "on the device": simulation.on_device / simulation.asked,
        "adapters a step": together / steps,
        "first token p50 ms": 1000 * cuts[49],
        "p99 ms": 1000 * cuts[98],
        "busiest / mean": max(tokens) / mean(tokens),
    }
