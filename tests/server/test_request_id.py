"""Row 21: one id in the answer, the error and the log line."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest

from router.server.interceptors.call import request_id_of
from tests.server.helpers import Connect, Start, ask, details, failure, stream


def last_line(caplog: pytest.LogCaptureFixture) -> dict[str, object]:
    return next(r.fields for r in reversed(caplog.records) if r.name == "router.server.access")


async def test_a_given_id_is_echoed(stubs: SimpleNamespace, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "router")
    call = stubs.inference.Generate(ask("medical"), metadata=(("x-request-id", "mine-1"),))
    assert (await call).response_id == "mine-1"
    headers = dict(await call.initial_metadata())
    assert headers["x-request-id"] == "mine-1"
    assert headers["x-router-adapter"] == "adapters/medical/versions/1.0.0"
    line = last_line(caplog)
    assert (line["request_id"], line["adapter"], line["code"]) == ("mine-1", "medical", "OK")


async def test_streams_have_it_in_their_headers(stubs: SimpleNamespace) -> None:
    call = stubs.inference.StreamGenerate(stream("legal"), metadata=(("x-request-id", "mine-2"),))
    headers = dict(await call.initial_metadata())
    assert headers["x-request-id"] == "mine-2"
    assert headers["x-router-adapter"] == "adapters/legal/versions/2.0.0"
    assert (await anext(aiter(call))).started.response_id == "mine-2"
    call.cancel()


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
