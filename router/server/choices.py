"""Several answers in one call: to several prompts, several to each; all of them in the engine at once.

Each answer has a place of admission, a quota and a row of its own, as if it were a call. The first answer to
a prompt is routed; the others come from what gives the first. Nothing is sent before the engine has taken all
of them, so that one refusal refuses all. An error of one ends all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial

from router.engine.base import Buffered
from router.errors import FieldViolation, InvalidRequest
from router.server.call import Call
from router.server.inference import (
    ALL,
    EACH,
    InferenceService,
    StreamedAnswer,
    deliver,
    gather,
    started_message,
)
from router.types import Decision, Request, Usage
from router.v1 import inference_pb2 as pb

Write = Callable[[int, pb.StreamGenerateResponse], Awaitable[None]]


async def answer_all(
    service: InferenceService, messages: Sequence[pb.GenerateRequest], n: int, call: Call
) -> list[pb.GenerateResponse]:
    """`n` whole answers to each message, in the order of the messages. Raises as `Generate` does."""
    answers = [pb.GenerateResponse() for _ in range(len(messages) * n)]

    async def write(place: int, event: pb.StreamGenerateResponse) -> None:
        gather(answers[place], event)

    with _Group(service, messages, n, call, write, ALL) as group:
        await group.run()
    return answers


async def stream_all(
    service: InferenceService, messages: Sequence[pb.GenerateRequest], n: int, call: Call, write: Write
) -> None:
    """The same as events, each with the place of its answer in that order."""
    with _Group(service, messages, n, call, write, EACH) as group:
        await group.run(call.begin)


@contextmanager
def of_message(number: int, of: int) -> Iterator[None]:
    """Errors of the block name the field `inputs[NUMBER]` where there are several."""
    try:
        yield
    except InvalidRequest as error:
        if of == 1:
            raise

        def numbered(violation: FieldViolation) -> FieldViolation:
            if not violation.field.startswith("input"):
                return violation
            return replace(violation, field=f"inputs[{number}]{violation.field.removeprefix('input')}")

        raise error.reworded(numbered) from None


class _Group:
    """The answers of one call. Inside the block each has its place; `run` makes them."""

    def __init__(
        self,
        service: InferenceService,
        messages: Sequence[pb.GenerateRequest],
        n: int,
        call: Call,
        write: Write,
        every: int,
    ) -> None:
        self._service, self._messages, self._n = service, messages, n
        self._calls = [call, *(call.branch() for _ in range(len(messages) * n - 1))]
        self._write, self._every = write, every
        self._places = ExitStack()
        self._requests: list[Request] = []
        self._decisions: list[asyncio.Future[Decision]] = []
        self._begin: Callable[[], Awaitable[None]] | None = None
        self._untaken = len(self._calls)
        self._taken = asyncio.Event()
        self._writing = asyncio.Lock()

    def __enter__(self) -> _Group:
        """Raises InvalidRequest, Overloaded, QuotaExceeded."""
        admission = self._service.admission
        with ExitStack() as places:
            for call in self._calls[1:]:
                call.meter = places.enter_context(admission.quotas.call(call.client))
                places.enter_context(admission.admitted(call))
            for number, message in enumerate(self._messages):
                with of_message(number, len(self._messages)):
                    for call in self._calls[number * self._n : (number + 1) * self._n]:
                        self._requests.append(self._service.asked(message, call))
            self._places = places.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        main, *others = self._calls
        for call in others:
            main.answer.exposures += call.answer.exposures
        self._places.close()

    async def run(self, begin: Callable[[], Awaitable[None]] | None = None) -> None:
        """Make all answers; `begin` is called once the engine has taken them."""
        self._begin = begin
        loop = asyncio.get_running_loop()
        self._decisions = [loop.create_future() for _ in self._messages]
        try:
            async with asyncio.TaskGroup() as tasks:
                for place in range(len(self._calls)):
                    tasks.create_task(self._answer(place))
        except BaseExceptionGroup as group:
            raise _first(group) from None
        self._calls[0].answer.usage = self._usage()

    async def _answer(self, place: int) -> None:
        number, sample = divmod(place, self._n)
        call, request, pipeline = self._calls[place], self._requests[place], self._service.pipeline
        with of_message(number, len(self._messages)):
            if not sample:
                async with self._service.answer(request, call) as (decision, generation):
                    self._decisions[number].set_result(decision)
                    await self._follow(place, decision, generation)
                return
            decision = await self._decisions[number]
            first = self._calls[number * self._n].answer.request or request
            request = replace(first, request_id=request.request_id)
            async with pipeline.another(request, decision, call, sample) as generation:
                await self._follow(place, decision, generation)

    async def _follow(self, place: int, decision: Decision, generation: Buffered) -> None:
        """Send the events of an answer, once all are taken."""
        call, request = self._calls[place], self._requests[place]
        answer, explain = StreamedAnswer(request.tools), request.routing.explain
        self._untaken -= 1
        if not self._untaken:
            if self._begin is not None:
                await self._begin()
            self._taken.set()
        await self._taken.wait()
        await self._put(place, started_message(self._calls[0].response_id, decision, explain))
        await deliver(generation, self._every, answer, call, partial(self._put, place))

    async def _put(self, place: int, event: pb.StreamGenerateResponse) -> None:
        async with self._writing:
            await self._write(place, event)

    def _usage(self) -> Usage:
        """Of all answers; a prompt counts once."""
        each = [call.answer.usage or Usage() for call in self._calls]
        firsts = each[:: self._n]
        return replace(
            firsts[0],
            prompt_tokens=sum(usage.prompt_tokens for usage in firsts),
            cached_tokens=sum(usage.cached_tokens for usage in firsts),
            completion_tokens=sum(usage.completion_tokens for usage in each),
            accepted_draft_tokens=sum(usage.accepted_draft_tokens for usage in each),
            total_time=max(usage.total_time for usage in each),
        )


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that ended the others."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
