"""Judges at work: each asked for one case at a time, within its time, its faults kept apart."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping

from router.experiments.judges import Case, Heard, Judge, Judgement
from router.plugins.judges import JudgeRegistration, valid
from router.plugins.threads import await_in_thread
from router.routing.base_model import BaseModel
from router.routing.breaker import Breaker
from router.routing.faults import place

log = logging.getLogger(__name__)
BaseFor = Callable[[float], BaseModel]  # the base for a judge with this timeout in seconds
MOST_WAITING = 32  # cases of one judge; more are not judged
MAX_STUCK = 3
PREPARE_SECONDS = 120.0


class Court:
    """Asks judges by name. Lives on one event loop.

    `registrations` gives those that are loaded now; `base_for` the base model, None where there is none.
    """

    def __init__(
        self, registrations: Callable[[], Mapping[str, JudgeRegistration]], base_for: BaseFor | None = None
    ) -> None:
        self._registrations, self._base_for = registrations, base_for
        self._seats: dict[str, _Seat] = {}

    def names(self) -> tuple[str, ...]:
        """Judges that can be asked."""
        return tuple(sorted(self._registrations()))

    async def judge(self, name: str, case: Case) -> Heard:
        """What the judge says, or why it says nothing; never raises for a judge's fault."""
        registration = self._registrations().get(name)
        if registration is None:
            return Heard(error="unknown")
        seat = self._seats.get(name)
        if seat is None or seat.registration is not registration:
            seat = self._seats[name] = _Seat(registration, self._base_for)
        return await seat.judge(case)


class _Seat:
    """One judge. A call that does not return costs its thread, not the server's."""

    def __init__(self, registration: JudgeRegistration, base_for: BaseFor | None) -> None:
        self.registration = registration
        self._base = base_for(registration.timeout) if base_for and registration.wants_base else None
        kind = type(registration.judge)
        self._cold = registration.wants_base or kind.warmup is not Judge.warmup
        self._turn = asyncio.Lock()
        self._breaker = Breaker()
        self._waiting = 0

    async def judge(self, case: Case) -> Heard:
        if self._base is None and self.registration.wants_base:
            return Heard(error="no-base")
        if self._waiting >= MOST_WAITING:
            return Heard(error="busy")
        self._waiting += 1
        try:
            async with self._turn:
                return await self._in_turn(case)
        finally:
            self._waiting -= 1

    async def _in_turn(self, case: Case) -> Heard:
        health = self.registration.health
        if health.stuck >= MAX_STUCK:
            return Heard(error="disabled")
        if not self._breaker.allow(time.monotonic()):
            return Heard(error="breaker-open")
        try:
            heard, fault = await self._call(case)
        except asyncio.CancelledError:
            self._breaker.abandoned()
            raise
        if fault:
            health.errors += 1
            health.last_error = fault
            self._breaker.failed(time.monotonic())
            log.warning("judge %s: %s", self.registration.name, fault)
        else:
            self._breaker.succeeded()
            health.judged += heard.judgement is not None
            health.declined += heard.judgement is None
        health.breaker = self._breaker.state.value
        return heard

    async def _call(self, case: Case) -> tuple[Heard, str]:
        """What came of it and, if the judge failed, its kind and place; never text of the exception."""
        limit = self.registration.timeout + (PREPARE_SECONDS if self._cold else 0.0)
        call = asyncio.create_task(self._guarded(case), name=f"judge {self.registration.name}")
        done, _ = await asyncio.wait({call}, timeout=limit)
        if not done:
            self.registration.health.stuck += 1
            call.add_done_callback(self._returned)
            return Heard(error="timeout"), f"did not answer within {limit:g} s"
        judgement, error = call.result()
        if isinstance(error, TimeoutError):
            return Heard(error="timeout"), "timeout"
        if error is not None:
            return Heard(error="raised"), f"raised {place(error)}"
        if not valid(judgement):
            return Heard(error="invalid"), "invalid judgement"
        return Heard(judgement), ""

    async def _guarded(self, case: Case) -> tuple[Judgement | None, BaseException | None]:
        """SystemExit and its like are data here: raised in a task they would end the event loop."""
        try:
            return await await_in_thread(lambda: self._work(case), f"judge {self.registration.name}"), None
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            return None, error

    def _work(self, case: Case) -> Judgement | None:
        judge = self.registration.judge
        if self._cold:
            if self._base is not None:
                judge.bind(self._base)
            judge.warmup()
            self._cold = False
        return judge.judge(case)

    def _returned(self, _: object) -> None:
        self.registration.health.stuck -= 1
