"""What is almost a token is none, and the answer does not tell how near it was."""

from __future__ import annotations

import base64
import json
import logging
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from router.access.clients import Client, Clients, hash_of, new_token
from router.v1 import adapters_pb2
from tests.security.helpers import bearer, write_clients
from tests.server.helpers import Connect, Start, ask, details, failure, long_stream, stream


@pytest.fixture
async def guarded(start_server: Start, connect: Connect, tmp_path: Path) -> SimpleNamespace:
    """A server with clients, and stubs to it."""
    clients = write_clients(tmp_path, billing=("infer",), search=("infer", "observe"))
    server = await start_server(clients=clients.path)
    return SimpleNamespace(clients=clients, server=server, stubs=connect(server))


async def test_a_client_is_let_in_and_named_in_the_log(
    guarded: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "router")
    answer = await guarded.stubs.inference.Generate(ask(), metadata=bearer(guarded.clients.billing))
    assert answer.text
    (line,) = [r.fields for r in caplog.records if r.name == "router.server.access"]  # type: ignore[attr-defined]
    assert (line["client"], line["code"]) == ("billing", "OK")
    assert guarded.clients.billing.removeprefix("lrk_billing_") not in caplog.text + repr(line)


def near(token: str, other: str) -> dict[str, str]:
    """What is almost that token."""
    head = "lrk_billing_"
    secret = token.removeprefix(head)  # may hold an underscore itself
    return {
        "prefix": token[:-1],
        "suffix": token + "A",
        "beginning": token[:20],
        "empty secret": head,
        "case": head + secret.swapcase(),
        "upper": token.upper(),
        "other id": token.replace("lrk_billing_", "lrk_search_"),
        "other secret": "lrk_billing_" + other.removeprefix("lrk_search_"),
        "no id": token.replace("lrk_billing_", "lrk__"),
        "unknown id": token.replace("billing", "nobody"),
        "sql": "lrk_billing_' OR 1=1 --",
        "hash": hash_of(token),
        "space": token + " ",
        "two": f"{token},{token}",
    }


async def test_what_is_almost_a_token_is_refused_without_a_hint(guarded: SimpleNamespace) -> None:
    clients = guarded.clients
    answers = set()
    for what, token in near(clients.billing, clients.search).items():
        refused = await failure(guarded.stubs.inference.Generate(ask(), metadata=bearer(token)))
        info = details(refused)["ErrorInfo"]
        assert (what, refused.code().name, info.reason) == (what, "UNAUTHENTICATED", "TOKEN_INVALID")
        answers.add((refused.details(), tuple(sorted(set(info.metadata) - {"request_id"}))))
    assert len(answers) == 1


async def test_other_schemes_and_several_headers_are_refused(guarded: SimpleNamespace) -> None:
    token = guarded.clients.billing
    good = ("authorization", f"Bearer {token}")
    for metadata in (
        (("authorization", token),),
        (("authorization", f"Basic {token}"),),
        (good, good),
        (("authorization", "Bearer x"), good),
    ):
        refused = await failure(guarded.stubs.inference.Generate(ask(), metadata=metadata))
        assert details(refused)["ErrorInfo"].reason == "TOKEN_INVALID"


def test_unicode_is_no_token() -> None:
    clients = Clients([Client("billing", (hash_of(new_token("billing")),))])
    for odd in (
        "lrk_billing_" + "\u0661" * 43,
        "lrk_billing_" + "\uff21" * 43,
        "\x00",
        "lrk_bılling_" + "a" * 43,
    ):
        assert clients.by_token(odd) is None


def test_tokens_that_share_their_beginning_are_two() -> None:
    first = "lrk_billing_" + "A" * 30 + "B" * 13
    second = "lrk_billing_" + "A" * 30 + "C" * 13
    clients = Clients([Client("billing", (hash_of(first),))])
    assert clients.by_token(first) is not None
    assert clients.by_token(second) is None


async def test_a_client_that_is_taken_out_is_refused_and_ended_within_a_second(
    guarded: SimpleNamespace,
) -> None:
    clients, stubs = guarded.clients, guarded.stubs
    held = stubs.adapters.WatchAdapters(adapters_pb2.WatchAdaptersRequest(), metadata=bearer(clients.search))
    await anext(aiter(held))
    kept = clients.path.read_text().split("[[client]]")[1]
    start = time.monotonic()
    clients.path.write_text("[[client]]" + kept)
    ended = await failure(held)
    assert details(ended)["ErrorInfo"].reason == "TOKEN_INVALID"
    assert time.monotonic() - start < 1
    refused = await failure(stubs.inference.Generate(ask(), metadata=bearer(clients.search)))
    assert refused.code().name == "UNAUTHENTICATED"
    assert (await stubs.inference.Generate(ask(), metadata=bearer(clients.billing))).text


async def test_a_running_answer_ends_too(guarded: SimpleNamespace, fakes: SimpleNamespace) -> None:
    guarded.server.engine.step_seconds = 0.02
    call = guarded.stubs.inference.StreamGenerate(long_stream(), metadata=bearer(guarded.clients.search))
    await anext(aiter(call))
    guarded.clients.path.write_text("")
    assert details(await failure(call))["ErrorInfo"].reason == "TOKEN_INVALID"


async def test_a_bad_file_changes_nothing_but_a_metric(guarded: SimpleNamespace) -> None:
    guarded.clients.path.write_text("oh")
    guarded.server.access.look()
    answer = guarded.stubs.inference.StreamGenerate(stream(), metadata=bearer(guarded.clients.billing))
    assert [message async for message in answer]
    guarded.server.look()
    assert guarded.server.metrics.registry.get_sample_value(
        "lora_router_credentials_stale", {"file": "clients"}
    )


def test_a_check_takes_microseconds() -> None:
    token = new_token("billing")
    clients = Clients([Client("billing", (hash_of(token),))])
    times = []
    for _ in range(200):
        start = time.perf_counter()
        clients.by_token(token)
        times.append(time.perf_counter() - start)
    assert min(times) < 50e-6


# -- Tokens of other schemes are nobody's: nothing in them is believed.


def part(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


CLAIMS = {"sub": "billing", "client_id": "billing", "roles": ["admin"], "exp": 1 << 40, "aud": "lora-router"}
HEADERS: dict[str, dict[str, object]] = {
    "no algorithm": {"alg": "none"},
    "empty": {},
    "HMAC": {"alg": "HS256", "typ": "JWT"},
    "key inside": {"alg": "RS256", "jwk": {"kty": "RSA", "n": "AQAB", "e": "AQAB"}},
    "key fetched": {"alg": "RS256", "jku": "http://127.0.0.1:1/keys", "kid": "../../etc/passwd"},
    "critical": {"alg": "HS256", "crit": ["b64"], "b64": False},
}


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("signature", ["", "AAAA"])
async def test_a_jwt_is_nobodys(
    start_server: Start, connect: Connect, tmp_path: Path, header: str, signature: str
) -> None:
    clients = write_clients(tmp_path, billing=("infer", "admin"))
    stubs = connect(await start_server(clients=clients.path))
    token = f"{part(HEADERS[header])}.{part(CLAIMS)}.{signature}"
    refused = await failure(stubs.inference.Generate(ask(), metadata=bearer(token)))
    assert details(refused)["ErrorInfo"].reason == "TOKEN_INVALID"
    assert "billing" not in refused.details()
