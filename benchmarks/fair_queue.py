"""How long one who asks little waits beside one who asks for all: `python -m benchmarks.fair_queue`.

The engine's scheduler without a model: a step takes as long as is said, so that all times but those of
planning are exact and the same on any machine. One client sends 200 requests at once and a new one for each
that ends; another sends short questions, one after the other. Once nobody tells them apart, once they are two
tenants.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch

from benchmarks import report
from router.engine.base import Job
from router.engine.lora import DeviceSlots, HostStore, PackedAdapter
from router.engine.rows import AnswerRow, BlockPool
from router.engine.scheduler import Scheduler
from router.types import SamplingParams

ANY: Any = None
ADAPTERS = "abcdefgh"
FLOOD, QUESTIONS = 200, 50
PROMPT, ANSWER = 60, 30  # tokens of a question


@dataclass(frozen=True, slots=True)
class Flood:
    """What the other asks for."""

    prompt: int  # tokens
    answer: int
    adapters: int = 0  # that its requests go to in turn; 0: the base

    def row(self, number: int, tenant: str) -> AnswerRow:
        """Its next request."""
        adapter = ADAPTERS[number % self.adapters] if self.adapters else None
        return made(self.prompt, self.answer, tenant, adapter, first=100_000 * (number + 1))


FLOODS = {
    "none": None,
    "long answers": Flood(100, 1000),
    "long prompts": Flood(4000, 20),
    "long answers through every slot": Flood(100, 1000, adapters=4),
}


def made(length: int, new: int, tenant: str, adapter: str | None, first: int) -> AnswerRow:
    """A request of `length` and `new` tokens."""
    tokens = range(first, first + length)
    job = Job("r", tokens, SamplingParams(max_tokens=new), adapter, tenant=tenant)
    row = AnswerRow(stream=ANY, job=job, sampling=ANY, detokenizer=ANY, eos=frozenset())
    row.arrived = time.monotonic()
    return row


def scheduler_of(running: int, cache_tokens: int, slots: int) -> Scheduler:
    """One with adapters in host memory."""
    host = HostStore()
    for digest in ADAPTERS:
        host.put(PackedAdapter(digest, [], torch.zeros(0, 3, dtype=torch.int64), [], 1))
    return Scheduler(
        BlockPool(cache_tokens // 16),
        DeviceSlots(slots, host, lambda adapter: adapter),
        base_digest="base",
        max_running=running,
        max_step_tokens=512,
    )


class Play:
    """A scheduler whose steps take `step` seconds of a clock of its own."""

    def __init__(self, scheduler: Scheduler, step: float) -> None:
        self.scheduler, self._step = scheduler, step
        self.now, self.tokens, self.planning = 0.0, 0, list[float]()

    def step(self) -> None:
        """One step, and the end of who ends with it."""
        started = time.perf_counter()
        chunks = self.scheduler.schedule()
        self.planning.append(time.perf_counter() - started)
        self.now += self._step
        for chunk in chunks:
            self.scheduler.computed(chunk)
            self.tokens += chunk.count
            if chunk.samples and isinstance(row := chunk.row, AnswerRow):
                row.tokens.append(0)
                row.first_token = row.first_token or self.now
                if row.length_reached():
                    self.scheduler.finish(row)


def measured(flood: Flood | None, named: bool, options: argparse.Namespace) -> dict[str, Any]:
    """Waiting times of the questions, and what it cost the flood."""
    play = Play(scheduler_of(options.running, options.cache_tokens, options.slots), options.step)
    with patch("time.monotonic", lambda: play.now):
        return _measured(play, flood, "flood" if named else "", "light" if named else "")


def _measured(play: Play, flood: Flood | None, heavy: str, light: str) -> dict[str, Any]:
    sent = 0
    waits, whole = list[float](), list[float]()

    def step() -> None:
        nonlocal sent
        while flood is not None and len(play.scheduler.waiting) + len(play.scheduler.running) < FLOOD:
            play.scheduler.add(flood.row(sent, heavy))
            sent += 1
        play.step()

    for _ in range(100):
        step()
    play.tokens = 0
    before = len(play.planning)
    for number in range(QUESTIONS):
        play.scheduler.add(question := made(PROMPT, ANSWER, light, "h", -1000 * (number + 1)))
        while not question.length_reached() and play.now - question.arrived < 600:
            step()
        waits.append((question.first_token or play.now) - question.arrived)
        whole.append(play.now - question.arrived)
    steps = len(play.planning) - before
    return {
        "first_token_seconds": spread(waits),
        "whole_answer_seconds": spread(whole),
        "tokens_a_step": round(play.tokens / steps, 1),
        "preemptions": play.scheduler.preemptions,
        "planning_us": round(1e6 * statistics.median(play.planning[before:]), 1),
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, 95th percentile and largest."""
    ordered = sorted(values)
    places = {"median": 0.5, "p95": 0.95, "max": 1.0}
    return {name: round(ordered[int(place * (len(ordered) - 1))], 2) for name, place in places.items()}


def planning(tenants: int, waiting: int, options: argparse.Namespace) -> float:
    """Median microseconds of planning a step in which all rows decode, with so many requests that wait."""
    play = Play(scheduler_of(options.running, 1 << 20, options.slots), 0.0)
    for number in range(options.running + waiting):
        play.scheduler.add(made(20, 2000, str(number % tenants), None, 1000 * number))
    for _ in range(1500):
        play.step()
    return round(1e6 * statistics.median(play.planning[500:]), 2)


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--step", type=float, default=0.04, help="seconds of a step")
    parser.add_argument("--running", type=int, default=32, help="places")
    parser.add_argument("--cache-tokens", type=int, default=32768)
    parser.add_argument("--slots", type=int, default=4)
    options = parser.parse_args()
    rows = [
        row(name, told, measured(flood, named, options))
        for name, flood in FLOODS.items()
        for named, told in ((False, "no"), (True, "yes"))
    ]
    costs = [
        {"tenants": tenants, "waiting": waiting, "us": planning(tenants, waiting, options)}
        for tenants in (1, 2, 8)
        for waiting in (0, 200)
    ]
    workload = (
        f"The scheduler alone: {options.running} places, {options.slots} slots, "
        f"{options.cache_tokens} tokens of cache, {options.step:g} s a step, by a clock that the program "
        f"moves. Beside the flood {QUESTIONS} "
        "short questions, one after the other. Planning is real time."
    )
    tables = {"Planning a step in which all rows decode": costs}
    print(
        report.write(
            "fair-queue", workload, rows, ["seconds; tokens a step are those of both"], tables=tables
        )
    )


def row(flood: str, named: str, found: dict[str, Any]) -> dict[str, Any]:
    """Of the table."""
    first, whole = found["first_token_seconds"], found["whole_answer_seconds"]
    return {
        "beside": flood,
        "told apart": named,
        "first token": first["median"],
        "worst": first["max"],
        "whole answer": whole["median"],
        "worst ": whole["max"],
        "tokens a step": found["tokens_a_step"],
        "preempted": found["preemptions"],
        "planning us": found["planning_us"],
    }


if __name__ == "__main__":
    main()
