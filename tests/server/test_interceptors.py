"""What happens around every call: ids, deadlines, errors before and after the handler, one log line."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from router.engine.base import Finished
from router.errors import DeadlineExceeded, Overloaded
from router.server import admission as module
from router.server.admission import Sending
from router.server.app import ServerApp
from router.server.call import ENCODE, LEASE, ROUTE, Answer, Call, request_id_of
from router.server.inference import InferenceService, completed
from router.server.interceptors import bounded
from router.server.policy import GENERATE, OBSERVE
from router.types import FinishReason, Request
from router.v1 import inference_pb2 as pb
from tests.server.helpers import (
    Connect,
    Start,
    ask,
    call_of,
    details,
    failure,
    long_stream,
    settled,
    stream,
    until,
)

HEX = re.compile(r"[0-9a-f]{32}")
ID = (("x-request-id", "mine-4"),)


def last_line(caplog: pytest.LogCaptureFixture) -> dict[str, object]:
    return next(r.fields for r in reversed(caplog.records) if r.name == "router.server.access")


async def test_a_given_id_is_echoed(stubs: SimpleNamespace, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "router")
    call = stubs.inference.Generate(ask("medical"), metadata=(("x-request-id", "mine-1"),))
    response_id = (await call).response_id
    headers = dict(await call.initial_metadata())
    assert headers["x-request-id"] == "mine-1"
    assert headers["x-router-adapter"] == "adapters/medical/versions/1.0.0"
    line = last_line(caplog)
    assert (line["request_id"], line["adapter"], line["code"]) == ("mine-1", "medical", "OK")
    assert line["response_id"] == response_id != "mine-1"


async def test_the_line_of_a_refusal_names_its_reason_and_its_bound(
    stubs: SimpleNamespace, fakes: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "router")
    fakes.router.error = Overloaded("full", bound="engine")
    seen = await failure(stubs.inference.Generate(ask()))
    line = last_line(caplog)
    assert (line["code"], line["error"], line["bound"]) == ("UNAVAILABLE", "QUEUE_FULL", "engine")
    assert details(seen)["ErrorInfo"].metadata["bound"] == "engine"


async def test_streams_have_it_in_their_headers(stubs: SimpleNamespace) -> None:
    call = stubs.inference.StreamGenerate(stream("legal"), metadata=(("x-request-id", "mine-2"),))
    headers = dict(await call.initial_metadata())
    assert headers["x-request-id"] == "mine-2"
    assert headers["x-router-adapter"] == "adapters/legal/versions/2.0.0"
    assert HEX.fullmatch((await anext(aiter(call))).started.response_id)
    call.cancel()


async def test_the_id_of_an_answer_is_the_servers_own(stubs: SimpleNamespace, fakes: SimpleNamespace) -> None:
    same = (("x-request-id", "0" * 32),)
    answers = [await stubs.inference.Generate(ask("legal"), metadata=same) for _ in range(3)]
    made = {answer.response_id for answer in answers}
    assert len(made - {"0" * 32}) == 3
    assert all(HEX.fullmatch(one) for one in made)
    assert {job.request_id for job in fakes.engine.jobs} == made


async def test_a_made_request_id_does_not_tell_the_id_of_the_answer(stubs: SimpleNamespace) -> None:
    call = stubs.inference.Generate(ask("legal"))
    assert dict(await call.initial_metadata())["x-request-id"] != (await call).response_id


async def test_a_bug_is_logged_under_both_ids(
    stubs: SimpleNamespace, fakes: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    fakes.router.error = ValueError("a bug")
    await failure(stubs.inference.Generate(ask(), metadata=(("x-request-id", "mine-3"),)))
    (logged,) = (r.fields for r in caplog.records if r.message == "internal error")  # type: ignore[attr-defined]
    assert logged["request_id"] == "mine-3"
    assert HEX.fullmatch(logged["response_id"])


async def test_an_absent_id_is_made(stubs: SimpleNamespace, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "router")
    error = await failure(stubs.inference.Generate(ask("")))
    made = details(error)["ErrorInfo"].metadata["request_id"]
    assert len(made) == 32
    assert dict(error.trailing_metadata())["x-request-id"] == made
    line = last_line(caplog)
    assert (line["request_id"], line["code"], line["error"]) == (made, "INVALID_ARGUMENT", "INVALID_REQUEST")


async def test_prompts_are_not_logged(stubs: SimpleNamespace, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "router")
    await stubs.inference.Generate(ask("my secret"))
    assert "my secret" not in repr(last_line(caplog))


@pytest.mark.parametrize("bad", ["", "x" * 129, "two words", "tab\there", "ü"])
def test_an_odd_id_is_replaced(bad: str) -> None:
    assert request_id_of([("x-request-id", bad)]) != bad


@pytest.mark.slow
async def test_a_callers_deadline(server: ServerApp, fakes: SimpleNamespace, stubs: SimpleNamespace) -> None:
    fakes.engine.step_seconds = 0.02
    request = ask("legal words", sampling={"min_tokens": 500, "max_tokens": 500})
    error = await failure(stubs.inference.Generate(request, timeout=0.2))
    assert error.code().name == "DEADLINE_EXCEEDED"
    assert await settled(server)


@pytest.mark.slow
async def test_the_servers_cap(start_server: Start, fakes: SimpleNamespace, connect: Connect) -> None:
    fakes.engine.step_seconds = 0.02
    server = await start_server(**vars(fakes), max_deadline_seconds=0.2)
    error = await failure(connect(server).inference.StreamGenerate(long_stream()))
    assert error.code().name == "DEADLINE_EXCEEDED"
    assert "deadline" in error.details()
    assert await settled(server)


async def test_a_hung_engine_does_not_hold_the_caller(
    server: ServerApp, fakes: SimpleNamespace, stubs: SimpleNamespace
) -> None:
    fakes.engine.hold()
    error = await failure(stubs.inference.Generate(ask(), timeout=0.1))
    assert error.code().name == "DEADLINE_EXCEEDED"
    await until(lambda: server.admission.in_flight == 0)


async def test_a_deadline_in_the_past_is_refused() -> None:
    with pytest.raises(DeadlineExceeded, match="when the request arrived"):
        async with bounded(call_of(), -1.0):
            pytest.fail("ran")


async def test_a_caller_whose_clock_is_ahead_has_met_its_deadline() -> None:
    """gRPC ends the call on both sides, and the caller's side, which began earlier, may be the first."""
    call = call_of()
    call.deadline = time.monotonic() + 1000.0
    assert not call.expired
    call.caller_ahead = 1000.1
    assert call.expired


async def test_another_timeout_inside_is_not_a_deadline() -> None:
    with pytest.raises(TimeoutError):
        async with bounded(call_of(), 60.0):
            raise TimeoutError


async def test_unknown_method_is_unimplemented(stubs: SimpleNamespace) -> None:
    seen = await failure(stubs.channel.unary_unary("/router.v1.InferenceService/Nope")(b""))
    assert seen.code().name == "UNIMPLEMENTED"


async def unsendable(service: object, request: object, context: object) -> object:
    return object()


async def writes_unsendable(service: object, request: object, call: Call) -> None:
    await call.write(object())


@pytest.mark.parametrize(
    ("method", "request_", "servicer"),
    [("Route", pb.RouteRequest(), unsendable), ("StreamGenerate", stream(), writes_unsendable)],
)
async def test_an_answer_that_cannot_be_encoded_is_an_error_like_any_other(
    start_server: Start,
    connect: Connect,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    method: str,
    request_: object,
    servicer: object,
) -> None:
    caplog.set_level(logging.INFO, "router")
    monkeypatch.setattr(InferenceService, method, servicer)
    stubs = connect(await start_server())
    seen = await failure(getattr(stubs.inference, method)(request_, metadata=ID))
    assert (seen.code().name, details(seen)["ErrorInfo"].reason) == ("INTERNAL", "INTERNAL")
    assert details(seen)["RequestInfo"].request_id == "mine-4"
    assert "object" not in (seen.details() or "")
    lines = [r.fields for r in caplog.records if r.name == "router.server.access"]  # type: ignore[attr-defined]
    assert [(line["code"], line["error"]) for line in lines] == [("INTERNAL", "TypeError")]
    assert "internal error" in [r.message for r in caplog.records]


# -- A call that passes its deadline says where the time went.


async def passes_its_deadline(call: Call, phase: str = "") -> str:
    async def work() -> None:
        with call.answer.during(phase) if phase else nullcontext():
            await asyncio.sleep(10)

    with pytest.raises(DeadlineExceeded) as ended:
        async with bounded(call, 0.01):
            await work()
    return ended.value.message


def known_call() -> Call:
    return call_of(answer=Answer(request=Request("r")))


async def test_a_late_call_says_that_its_request_had_not_come() -> None:
    assert "its body was not read" in await passes_its_deadline(call_of())


@pytest.mark.parametrize(("phase", "text"), [(LEASE, "the adapter was loaded"), (ENCODE, "was encoded")])
async def test_a_late_call_names_the_phase_that_was_cut_off(phase: str, text: str) -> None:
    call = known_call()
    with call.answer.during(ROUTE):
        pass
    assert text in await passes_its_deadline(call, phase)


@pytest.mark.parametrize(("tokens", "text"), [(0, "waited for its first token"), (3, "after 3 tokens")])
async def test_a_late_answer_says_how_far_it_came(tokens: int, text: str) -> None:
    call = known_call()
    call.answer.submitted = time.monotonic()
    if tokens:
        call.answer.came(tokens)
    assert text in await passes_its_deadline(call)
    with pytest.raises(DeadlineExceeded, match=text):
        completed(Finished(FinishReason.DEADLINE), call)


async def test_a_late_call_of_which_nothing_is_known_says_no_more() -> None:
    late = await passes_its_deadline(call_of(policy=OBSERVE))
    assert late == "the deadline passed before the answer was complete"


# -- An answer that no client reads ends its call, and frees what the call held.


class Slow(Call):
    """A call whose writes wait for `open`."""

    def __init__(self) -> None:
        super().__init__("/S/M", "r", GENERATE)
        self.open = asyncio.Event()
        self.written: list[Any] = []

    async def write(self, message: Any) -> None:
        self.writing_since = time.monotonic()
        await self.open.wait()
        self.written.append(message)
        self.writing_since = 0.0


@asynccontextmanager
async def watched_call(sending: Sending, call: Call) -> AsyncIterator[None]:
    async with bounded(call, None):
        with sending.watched(call):
            yield


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Bounds that a test can wait for."""
    monkeypatch.setattr(module, "SEND_SECONDS", 0.05)
    monkeypatch.setattr(module, "PRESSED_SECONDS", 0.02)
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.01)
    return SimpleNamespace()


async def test_a_write_that_waits_too_long_ends_the_call(looked: SimpleNamespace) -> None:
    sending, call = Sending(lambda: False), Slow()
    following = asyncio.create_task(sending.follow())
    with pytest.raises(DeadlineExceeded, match="was not read in time") as ended:
        async with asyncio.timeout(10), watched_call(sending, call):
            await call.write("text")
    assert ended.value.metadata["bound"] == "not_reading"
    assert call.written == []
    following.cancel()


async def test_pauses_between_writes_are_nobodys_fault(looked: SimpleNamespace) -> None:
    sending, call = Sending(lambda: False), Slow()
    call.open.set()
    async with watched_call(sending, call):
        for text in "abc":
            await call.write(text)
            await asyncio.sleep(0.1)
            sending.look()
        await asyncio.sleep(0)
    assert call.written == ["a", "b", "c"]


async def test_where_places_are_scarce_it_ends_sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PRESSED_SECONDS", 0.02)
    scarce = False
    sending, call = Sending(lambda: scarce), Slow()

    async def answer() -> None:
        async with watched_call(sending, call):
            await call.write("text")

    answering = asyncio.create_task(answer())
    await asyncio.sleep(0.1)
    sending.look()
    await asyncio.sleep(0.01)
    assert not answering.done()
    scarce = True
    sending.look()
    with pytest.raises(DeadlineExceeded):
        await asyncio.wait_for(answering, 20)
