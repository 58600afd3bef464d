"""Row 21: the caller's id is in answer, error and log line; the id of the answer is the server's own."""

from __future__ import annotations

import logging
import re
from types import SimpleNamespace

import pytest

from router.server.call import request_id_of
from tests.server.helpers import Connect, Start, ask, details, failure, stream

HEX = re.compile(r"[0-9a-f]{32}")


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


async def test_prompts_are_logged_only_when_asked(
    start_server: Start, fakes: SimpleNamespace, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "router")
    quiet, loud = await start_server(**vars(fakes)), await start_server(log_prompts=True)
    await connect(quiet).inference.Generate(ask("my secret"))
    assert "my secret" not in repr(last_line(caplog))
    await connect(loud).inference.Generate(ask("my secret"))
    assert last_line(caplog)["prompt"] == "my secret"


@pytest.mark.parametrize("bad", ["", "x" * 129, "two words", "tab\there", "ü"])
def test_an_odd_id_is_replaced(bad: str) -> None:
    assert request_id_of([("x-request-id", bad)]) != bad
