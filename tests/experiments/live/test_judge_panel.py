"""Judges at work: in time or not at all, and their faults are their own."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

from router.classifiers.isolation import FAILURES
from router.classifiers.stand_in import StandInBase
from router.experiments.live import shadow
from router.experiments.live.shadow import JudgePanel
from router.judging import Case, Heard, Judge, Judgement
from router.plugins.judges import JudgeRegistration
from router.types import Request

CASE = Case(Request("r", raw_prompt="q"), "served", "shadow")
WIN = Judgement(1)


class Does(Judge):
    """Whatever the test says."""

    name = "does"

    def __init__(self, work: Callable[[], Judgement | None]) -> None:
        self.work = work
        self.warmed = 0

    def warmup(self) -> None:
        self.warmed += 1

    def judge(self, case: Case) -> Judgement | None:
        return self.work()


class Reads(Judge):
    name = "reads"

    def bind(self, base: object) -> None:
        self.base = base

    def judge(self, case: Case) -> Judgement | None:
        (found,) = self.base.likelihood("q", [case.shadow])  # type: ignore[attr-defined]
        return Judgement(1, {"mean": float(found.mean())})


def seated(judge: Judge, timeout: float = 5.0, **kw: object) -> tuple[JudgePanel, JudgeRegistration]:
    registration = JudgeRegistration(judge, "p", timeout)
    return JudgePanel(lambda: {judge.name: registration}, **kw), registration  # type: ignore[arg-type]


def exits() -> Judgement:
    raise SystemExit(3)


def breaks() -> Judgement:
    raise ValueError("a user's words")


async def test_a_judgement_a_decline_and_a_name_that_nobody_has() -> None:
    judge = Does(lambda: WIN)
    made, registration = seated(judge)
    assert await made.judge("does", CASE) == Heard(WIN)
    judge.work = lambda: None
    assert await made.judge("does", CASE) == Heard()
    assert await made.judge("other", CASE) == Heard(error="unknown")
    status = registration.status()
    assert (status.judged, status.declined, status.errors, judge.warmed) == (1, 1, 0, 1)
    assert made.names() == ("does",)


async def test_faults_are_told_without_text_and_open_the_breaker() -> None:
    judge = Does(breaks)
    made, registration = seated(judge)
    assert await made.judge("does", CASE) == Heard(error="raised")
    assert registration.health.last_error.startswith("raised ValueError at test_judge_panel.py")
    assert "words" not in registration.health.last_error
    judge.work = exits
    assert await made.judge("does", CASE) == Heard(error="raised")
    judge.work = lambda: Judgement(7)
    for _ in range(FAILURES - 2):
        assert await made.judge("does", CASE) == Heard(error="invalid")
    assert await made.judge("does", CASE) == Heard(error="breaker-open")
    assert registration.status().breaker == "open"


async def test_a_late_one_costs_its_pair_and_three_that_hang_disable_it() -> None:
    go = threading.Event()
    judge = Does(lambda: WIN if go.wait(30) else None)
    made, registration = seated(judge, timeout=0.02)
    made._seats["does"] = seat = shadow._Seat(registration, None)
    seat._cold = False
    for _ in range(shadow.MAX_STUCK):
        assert await made.judge("does", CASE) == Heard(error="timeout")
    assert await made.judge("does", CASE) == Heard(error="disabled")
    assert registration.status().stuck == shadow.MAX_STUCK
    go.set()
    end = time.monotonic() + 10
    while registration.health.stuck:
        assert time.monotonic() < end
        await asyncio.sleep(0.005)
    assert await made.judge("does", CASE) == Heard(WIN)


async def test_one_at_a_time_and_not_endlessly_many_wait() -> None:
    go, running = threading.Event(), []

    def work() -> Judgement:
        running.append(1)
        assert len(running) == 1
        go.wait(30)
        running.pop()
        return WIN

    made, _ = seated(Does(work))
    asked = [asyncio.ensure_future(made.judge("does", CASE)) for _ in range(shadow.MOST_WAITING + 3)]
    await asyncio.sleep(0.05)
    go.set()
    found = await asyncio.gather(*asked)
    assert found.count(Heard(error="busy")) == 3
    assert found.count(Heard(WIN)) == shadow.MOST_WAITING


async def test_the_base_where_there_is_one() -> None:
    without, _ = seated(Reads())
    assert await without.judge("reads", CASE) == Heard(error="no-base")
    asked: list[float] = []

    def base_for(timeout: float) -> StandInBase:
        asked.append(timeout)
        return StandInBase()

    made, _ = seated(Reads(), base_for=base_for)
    heard = await made.judge("reads", CASE)
    assert heard.judgement is not None
    assert heard.judgement.numbers["mean"] < 0
    assert asked == [5.0]


async def test_a_reloaded_judge_takes_over_at_once() -> None:
    table = {"does": JudgeRegistration(Does(lambda: WIN), "p", 5.0)}
    made = JudgePanel(lambda: table)
    assert await made.judge("does", CASE) == Heard(WIN)
    table["does"] = JudgeRegistration(Does(lambda: Judgement(-1)), "p", 5.0)
    assert await made.judge("does", CASE) == Heard(Judgement(-1))
    table.clear()
    assert await made.judge("does", CASE) == Heard(error="unknown")
