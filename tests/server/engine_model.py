"""A discrete-event model of the server: arrivals, admission, and an engine whose steps take longer with more
rows. Time is virtual, so that bursts and lasting overload are simulated in milliseconds."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from router.errors import Overloaded
from router.server.admission import Admission
from router.server.call import Call
from router.server.policy import ROWS
from router.types import Request, Sampling, Turn, Usage
from tests.server.helpers import call_of

GENERATE = "/router.v1.InferenceService/Generate"
READ_SECONDS = 0.001  # of the event loop, for the body of a call


@dataclass(eq=False)
class SimulatedRequest:
    """One request, and what became of it."""

    at: float
    prompt: int  # characters
    tokens: int  # of the answer
    most: int = 0  # max_tokens; 0 is none
    deadline: float = 600.0  # seconds after `at`
    outcome: str = ""  # "answered", "late" or the bound that refused it
    took: float = 0.0


@dataclass
class Engine:
    """Seconds of a step: `fixed`, and more for each row and each character of the prompts that begin."""

    rows: int = 32
    fixed: float = 0.01
    row: float = 0.001
    character: float = 0.00002

    def step(self, rows: int, characters: int) -> float:
        return self.fixed + rows * self.row + characters * self.character


@dataclass(eq=False)
class Row:
    asked: SimulatedRequest
    call: Call
    held: ExitStack
    submitted: float = 0.0
    began: float = 0.0
    sent: int = 0
    ended: bool = False


@dataclass
class Server:
    """One server; `simulate` may be called again, and admission knows what happened before."""

    engine: Engine = field(default_factory=Engine)
    queue: int = 256
    by_deadline: bool = True  # else requests of any deadline are let in
    now: float = 0.0

    def __post_init__(self) -> None:
        self.admission = Admission(self.engine.rows, self.queue, clock=lambda: self.now)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = count()
        self._waiting: list[Row] = []
        self._running: list[Row] = []
        self._stepping = False
        self._loop_free = 0.0

    def simulate(self, requests: Sequence[SimulatedRequest]) -> None:
        """From now on; `at` counts from now."""
        start = self.now
        for asked in requests:
            self._at(start + asked.at, lambda asked=asked: self._arrive(asked))  # type: ignore[misc]
        while self._events:
            self.now, _, act = heapq.heappop(self._events)
            act()

    def _at(self, time: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._events, (max(time, self.now), next(self._number), act))

    def _arrive(self, asked: SimulatedRequest) -> None:
        call = call_of(GENERATE, ROWS[GENERATE], started=self.now)
        call.deadline = self.now + asked.deadline if self.by_deadline else None
        row = Row(asked, call, ExitStack())
        if self._refused(row, lambda: row.held.enter_context(self.admission.admitted(call))):
            return
        self._loop_free = max(self._loop_free, self.now) + READ_SECONDS
        self._at(self._loop_free, lambda: self._read(row))
        self._at(self.now + asked.deadline, lambda: self._end(row, "late"))

    def _refused(self, row: Row, enter: Callable[[], Any]) -> bool:
        try:
            enter()
        except Overloaded as error:
            self._end(row, error.metadata["bound"])
            return True
        return False

    def _read(self, row: Row) -> None:
        if row.ended:
            return
        asked = row.asked
        sampling = Sampling(max_tokens=asked.most or None)
        row.call.answer.request = Request("id", turns=(Turn("user", "x" * asked.prompt),), sampling=sampling)
        if self._refused(row, lambda: self.admission.request_known(row.call)):
            return
        row.submitted = self.now
        self._waiting.append(row)
        if not self._stepping:
            self._step()

    def _step(self) -> None:
        self._running = [row for row in self._running if not row.ended]
        self._waiting = [row for row in self._waiting if not row.ended]
        room = self.engine.rows - len(self._running)
        new, self._waiting = self._waiting[:room], self._waiting[room:]
        for row in new:
            row.began = self.now
        self._running += new
        self._stepping = bool(self._running)
        if self._running:
            seconds = self.engine.step(len(self._running), sum(row.asked.prompt for row in new))
            self._at(self.now + seconds, self._stepped)

    def _stepped(self) -> None:
        for row in self._running:
            if not row.ended:
                row.call.answer.first_token = row.call.answer.first_token or self.now
                row.sent += 1
                if row.sent >= row.asked.tokens:
                    total = self.now - row.submitted
                    row.call.answer.usage = Usage(
                        completion_tokens=row.sent, queue_time=row.began - row.submitted, total_time=total
                    )
                    self._end(row, "answered")
        self._step()

    def _end(self, row: Row, outcome: str) -> None:
        if not row.ended:
            row.ended, row.asked.outcome = True, outcome
            row.asked.took = self.now - row.call.started
            row.held.close()


def mixed(
    chance: random.Random, number: int, over: float, deadlines: Sequence[float]
) -> list[SimulatedRequest]:
    """Requests of many kinds within `over` seconds: short and long prompts and answers, bounded or not."""
    made = []
    for _ in range(number):
        most = chance.choice((0, 0, 1, 16, 64, 256))
        tokens = min(most or 256, 1 + int(chance.expovariate(1 / 60)))
        prompt = int(chance.lognormvariate(5, 1.2))
        made.append(SimulatedRequest(chance.uniform(0, over), prompt, tokens, most, chance.choice(deadlines)))
    return sorted(made, key=lambda asked: asked.at)
