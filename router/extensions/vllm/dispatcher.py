"""Hands jobs to vLLM and brings back what becomes of them. Everything here runs on the engine's own loop.

As many requests as vLLM has rows are with it at once; a job in the background only where a quarter of the
rows stays free, and it is given up for a request. Readings go straight on, behind all requests.

No more adapters are with vLLM at once than there are slots: on a CPU it does not know that one is taken for
good, and a step with more adapters than slots ends its processes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from itertools import count
from typing import Any

import numpy as np

from router.engine.base import Finished, PoolingRequest
from router.engine.fairness import ANSWER_COST, VirtualCounters
from router.engine.output import Event, EventStream, PendingPooling, PoolingResult, Receiver
from router.errors import EngineFailed, RouterError
from router.extensions.vllm.answers import BACKGROUND, VllmAnswer
from router.extensions.vllm.link import VllmClient, VllmLora, VllmRequest
from router.types import FinishReason

log = logging.getLogger(__name__)
_FAILED = "the engine failed on this request"
PATIENCE = 1.0  # seconds that one who does not fit is overtaken by others
READINGS = BACKGROUND // 2  # of vLLM's priorities: behind requests, before jobs in the background

Send = Callable[[Receiver, Event], None]


class WaitingQueue:
    """Requests that wait, the next first: the higher priority, then the tenant that was served least, then
    who came first. vLLM serves in the order of arrival, so no more is handed to it than it can run.
    Background jobs never wait.
    """

    def __init__(self) -> None:
        self._waiting: list[VllmAnswer] = []
        self._served = VirtualCounters()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, answer: VllmAnswer) -> None:
        """It waits from now on."""
        self._waiting.append(answer)
        self._served.enter(answer.job.tenant)

    def remove(self, answer: VllmAnswer) -> bool:
        """It waits no longer; False if it did not."""
        if answer not in self._waiting:
            return False
        self._waiting.remove(answer)
        self._served.leave(answer.job.tenant)
        return True

    def next(self, fits: Callable[[VllmAnswer], bool] = lambda answer: True) -> VllmAnswer | None:
        """Who is served now, None if nobody waits or has to.

        Who does not fit is overtaken by those who do, but not for long: then all wait until it fits.
        """
        ranked = sorted(self._waiting, key=self._rank)
        first = next((answer for answer in ranked if fits(answer) or answer.waited > PATIENCE), None)
        if first is None or not fits(first):
            return None
        self.remove(first)
        self._served.charge(first.job.tenant, len(first.job.tokens) / first.job.share)
        return first

    def charge(self, answer: VllmAnswer, tokens: int) -> None:
        """Its answer has grown by so many."""
        self._served.charge(answer.job.tenant, ANSWER_COST * tokens / answer.job.share)

    def _rank(self, answer: VllmAnswer) -> tuple[int, float, int]:
        return -answer.job.priority, self._served.served(answer.job.tenant), answer.number


class Dispatcher:
    """`send` brings an event to its receiver."""

    def __init__(self, client: VllmClient, max_running: int, slots: int, send: Send) -> None:
        self._client, self._max_running, self._slots, self._send = client, max_running, slots, send
        self._in_slots: Counter[int] = Counter()  # adapters' numbers, until vLLM has let go of the request
        self._numbers = count()  # of requests: vLLM would abort both of two that are called alike
        self._queue = WaitingQueue()
        self._served: dict[EventStream, VllmAnswer] = {}  # with vLLM
        self._read: dict[PendingPooling, asyncio.Task[None]] = {}
        self._tasks: dict[VllmAnswer, asyncio.Task[None]] = {}
        self._timers: dict[Receiver, asyncio.TimerHandle] = {}
        self._waits: dict[EventStream, VllmAnswer] = {}
        self.dropped = 0  # jobs in the background that made room or found none
        self._closed: Event | None = None  # how whatever comes from now on ends
        self.spoilt = False  # numbers that are none were computed, and may be in the cache

    # -- for any thread

    @property
    def running(self) -> int:
        """Requests with vLLM."""
        return len(self._served) - self.background

    @property
    def background(self) -> int:
        """Jobs in the background with vLLM."""
        return sum(answer.job.background for answer in tuple(self._served.values()))

    @property
    def waiting(self) -> int:
        """Requests that wait here."""
        return len(self._queue)

    @property
    def reading(self) -> int:
        """Readings with vLLM."""
        return len(self._read)

    # -- answers

    def add(self, answer: VllmAnswer) -> None:
        """Serve it as soon as there is room."""
        if self._closed is not None:
            self._send(answer.stream, self._closed)
            return
        if answer.job.background:
            if len(self._served) < self._most_with_background and self._fits(answer):
                self._serve(answer)
            else:
                self.dropped += 1
                self._send(answer.stream, answer.finish(FinishReason.CANCELLED))
            return
        self._time(answer.stream, answer.job.deadline)
        self._waits[answer.stream] = answer
        self._queue.add(answer)
        self._go_on()

    def end(self, receiver: Receiver, reason: FinishReason = FinishReason.CANCELLED) -> None:
        """Drop it and say why; nothing happens if it is over."""
        if isinstance(receiver, PendingPooling):
            self._end_reading(receiver, reason)
            return
        answer = self._served.get(receiver) or self._waits.get(receiver)
        if answer is not None and not answer.over:
            self._send(receiver, answer.finish(reason))
            self._left(answer)

    def fail(self, error: RouterError) -> None:
        """End everything with an error, and what comes after."""
        self._closed = error
        for answer in (*self._served.values(), *self._waits.values()):
            if not answer.over:
                answer.failed = True
                self._send(answer.stream, error)
        for pending in tuple(self._read):
            self._send(pending, error)
        self._clear()

    def stop(self) -> None:
        """End everything as CANCELLED, and what comes after."""
        self._closed = self._closed or Finished(FinishReason.CANCELLED)
        receivers: list[Receiver] = [*self._served, *self._waits, *self._read]
        for receiver in receivers:
            self.end(receiver)
        self._clear()

    @property
    def _most_with_background(self) -> int:
        return self._max_running - max(1, self._max_running // 4)

    def _go_on(self) -> None:
        """Hand over who is next, at the expense of jobs in the background."""
        while len(self._queue) and self._closed is None:
            if len(self._served) >= self._max_running and not self._give_up_one():
                return
            answer = self._queue.next(self._fits)
            if answer is None:
                break
            self._waits.pop(answer.stream, None)
            self._serve(answer)
        while self.background and len(self._served) > self._most_with_background:
            self._give_up_one()

    def _fits(self, answer: VllmAnswer) -> bool:
        """Whether its adapter has a slot, or can have one."""
        lora = answer.lora
        return lora is None or lora.number in self._in_slots or len(self._in_slots) < self._slots

    def _let_go(self, lora: VllmLora | None) -> None:
        """vLLM has nothing more to do for one request of this adapter."""
        if lora is not None:
            self._in_slots[lora.number] -= 1
            if not self._in_slots[lora.number]:
                del self._in_slots[lora.number]
        self._go_on()

    def _give_up_one(self) -> bool:
        """The youngest job in the background; False if there is none."""
        answer = next((a for a in reversed(self._served.values()) if a.job.background), None)
        if answer is None:
            return False
        self.dropped += 1
        self._served.pop(answer.stream)
        self._send(answer.stream, answer.finish(FinishReason.CANCELLED))
        self._forget(answer)
        return True

    def _serve(self, answer: VllmAnswer) -> None:
        self._served[answer.stream] = answer
        if answer.job.background:
            self._time(answer.stream, answer.job.deadline)
        if answer.lora is not None:
            self._in_slots[answer.lora.number] += 1
        task = self._tasks[answer] = self._task(self._follow(answer))
        task.add_done_callback(lambda _: self._let_go(answer.lora))

    async def _follow(self, answer: VllmAnswer) -> None:
        ask = answer.ask(f"{next(self._numbers)}-{answer.job.request_id}")
        whole = False
        try:
            async with aclosing(self._client.generate(ask)) as pieces:
                async for piece in pieces:
                    if not answer.job.background:
                        self._queue.charge(answer, len(piece.tokens))
                    self.spoilt = self.spoilt or piece.spoilt
                    for event in answer.take(piece):
                        self._send(answer.stream, event)
                    whole = bool(piece.end)
                    if answer.over:
                        break
            if not answer.over:
                self._send(answer.stream, answer.fail(EngineFailed(_FAILED)))
        except RouterError as error:
            self._fail_one(answer, error)
        except Exception:
            log.exception("vLLM failed on a request")
            self._fail_one(answer, EngineFailed(_FAILED))
        finally:
            self._left(answer)
            if not whole:
                await self._client.abort(ask.id)

    def _fail_one(self, answer: VllmAnswer, error: RouterError) -> None:
        if not answer.over:
            answer.failed = True
            self._send(answer.stream, error)

    def _left(self, answer: VllmAnswer) -> None:
        """Its place is free."""
        self._served.pop(answer.stream, None)
        self._forget(answer)
        self._go_on()

    def _forget(self, answer: VllmAnswer) -> None:
        self._queue.remove(answer)
        self._waits.pop(answer.stream, None)
        if (timer := self._timers.pop(answer.stream, None)) is not None:
            timer.cancel()
        task = self._tasks.pop(answer, None)
        if task is not None and task is not asyncio.current_task():
            task.cancel()

    # -- readings

    def read(self, reading: PoolingRequest, pending: PendingPooling) -> None:
        """Have it read."""
        if self._closed is not None:
            self._send(pending, self._closed)
            return
        self._time(pending, reading.deadline)
        self._read[pending] = self._task(self._follow_reading(reading, pending))

    async def _follow_reading(self, reading: PoolingRequest, pending: PendingPooling) -> None:
        tokens = [*reading.context, *reading.tokens]
        sampling = {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0, "detokenize": False}
        priority = READINGS + (BACKGROUND if reading.background else 0)
        salt = f"reading {reading.scope}"
        ask = VllmRequest(f"{next(self._numbers)}-reading", tokens, sampling, None, priority, salt)
        whole = False
        found: tuple[float, ...] = ()
        try:
            async with aclosing(self._client.generate(ask)) as pieces:
                async for piece in pieces:
                    found, whole = piece.prompt or found, bool(piece.end)
            event: Event = self._values(reading, found)
        except RouterError as error:
            event = error
        except Exception:
            log.exception("vLLM failed on a reading")
            event = EngineFailed(_FAILED)
        finally:
            if not whole:
                await self._client.abort(ask.id)
        if self._read.pop(pending, None) is not None:
            self._untime(pending)
            self._send(pending, event)

    def _values(self, reading: PoolingRequest, found: tuple[float, ...]) -> Event:
        values = np.array(found[-len(reading.tokens) :], np.float32)
        if len(values) != len(reading.tokens) or not np.isfinite(values).all():
            self.spoilt = self.spoilt or not np.isfinite(values).all()
            return EngineFailed("the engine failed on this reading")
        return PoolingResult(values)

    def _end_reading(self, pending: PendingPooling, reason: FinishReason) -> None:
        task = self._read.pop(pending, None)
        if task is not None:
            task.cancel()
            self._untime(pending)
            self._send(pending, Finished(reason))

    # -- what both need

    def _task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return asyncio.get_running_loop().create_task(work)

    def _time(self, receiver: Receiver, deadline: float | None) -> None:
        """End it at its deadline (time.monotonic() seconds)."""
        if deadline is not None:
            left = max(0.0, deadline - time.monotonic())
            loop = asyncio.get_running_loop()
            self._timers[receiver] = loop.call_later(left, self.end, receiver, FinishReason.DEADLINE)

    def _untime(self, receiver: Receiver) -> None:
        if (timer := self._timers.pop(receiver, None)) is not None:
            timer.cancel()

    def _clear(self) -> None:
        for answer in (*self._served.values(), *self._waits.values()):
            self._forget(answer)
        self._served.clear()
        for task in self._read.values():
            task.cancel()
        self._read.clear()
