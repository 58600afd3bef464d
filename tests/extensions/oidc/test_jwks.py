"""Keys of issuers: which are taken, when they are fetched, and what a fetch does not put up with."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trustme

from router.access.issuers import USUAL, Issuer
from router.extensions.oidc import jwt
from router.extensions.oidc.jwt import MAX_BYTES, MAX_KEYS, Keys, Unusable, fetched, keys_in
from tests.extensions.oidc.issuing import AUDIENCE, Issuing, answering, ec_key, ed_key, jwk_of, rsa_key, sends

CONFIGURATION = "/.well-known/openid-configuration"


def document(*listed: Any) -> bytes:
    return json.dumps({"keys": listed}).encode()


def test_keys_for_the_algorithms_that_are_asked_for() -> None:
    listed = document(jwk_of("r", rsa_key("a")), jwk_of("e", ec_key("a")), jwk_of("o", ed_key("a")))
    assert set(keys_in(listed, USUAL)) == {("r", "RS256"), ("e", "ES256"), ("o", "EdDSA")}
    assert set(keys_in(listed, ["RS256", "PS256", "ES384"])) == {("r", "RS256"), ("r", "PS256")}


def test_what_is_no_key_for_signatures_is_left_out() -> None:
    good = jwk_of("good", rsa_key("a"))
    others = [
        jwk_of("encrypts", rsa_key("b"), use="enc"),
        jwk_of("signs", rsa_key("b"), key_ops=["sign"]),
        jwk_of("odd", rsa_key("b"), key_ops="verify"),
        jwk_of("of another algorithm", rsa_key("b"), alg="RS384"),
        jwk_of("of a shared secret", rsa_key("b"), alg="HS256"),
        jwk_of("small", rsa_key("small", 1024)),
        {**jwk_of("x", rsa_key("b")), "kid": 7},
        {key: value for key, value in jwk_of("no kid", rsa_key("b")).items() if key != "kid"},
        {"kty": "oct", "k": "c2VjcmV0", "kid": "secret", "alg": "RS256"},
        {"kty": "oct", "k": "c2VjcmV0", "kid": "secret"},
        {"kty": "RSA", "kid": "half", "n": "AQAB"},
        {"kty": "RSA", "kid": "junk", "n": "!", "e": 7},
        {"kty": "EC", "crv": "P-256", "kid": "off the curve", "x": "AQ", "y": "AQ"},
        {"kty": ["RSA"], "crv": {}, "kid": "lists"},
        "RSA",
        None,
    ]
    assert set(keys_in(document(*others, good), USUAL)) == {("good", "RS256")}
    for other in others:
        with pytest.raises(Unusable, match="no key with a kid"):
            keys_in(document(other), USUAL)


def test_of_two_keys_with_one_name_the_first_counts() -> None:
    first, second = jwk_of("a", rsa_key("a")), jwk_of("a", rsa_key("b"))
    found = keys_in(document(first, second), USUAL)
    assert found == keys_in(document(first), USUAL)
    assert found != keys_in(document(second), USUAL)


def test_what_is_secret_is_not_kept() -> None:
    private = {**jwk_of("a", rsa_key("a")), "d": "AQAB"}
    (key,) = keys_in(document(private), USUAL).values()
    assert '"d"' not in key.text
    assert not hasattr(key.jwk.key, "private_numbers")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff",
        b'{"keys": {}}',
        b"[" * 100_000,
        document(*[jwk_of(str(i), ed_key("a")) for i in range(MAX_KEYS + 1)]),
    ],
    ids=["empty", "object", "list", "bytes", "no list", "deep", "many"],
)
def test_what_is_no_set_of_keys(data: bytes) -> None:
    with pytest.raises(Unusable):
        keys_in(data, USUAL)


@pytest.fixture
def kept() -> SimpleNamespace:
    """Keys of an issuer, and a clock."""
    issuing, clock = Issuing(), SimpleNamespace(now=1000.0)
    issuer = Issuer(issuing.url, AUDIENCE)
    return SimpleNamespace(issuing=issuing, clock=clock, keys=Keys(issuer, issuing.fetch, lambda: clock.now))


async def test_they_are_fetched_every_hour(kept: SimpleNamespace) -> None:
    for now, asked in ((0.0, 1), (59.0, 1), (61.0, 1), (3599.0, 1), (3600.0, 2), (7199.0, 2), (7200.0, 3)):
        kept.clock.now = 1000.0 + now
        kept.keys.look()
        await asyncio.sleep(0.001)
        assert (now, kept.issuing.asked) == (now, asked)


async def test_invented_keys_are_asked_for_every_five_seconds_at_most(kept: SimpleNamespace) -> None:
    assert await kept.keys.find("a", "RS256")
    assert kept.issuing.asked == 1
    for i in range(600):
        kept.clock.now += 0.1
        assert await kept.keys.find(f"junk {i}", "RS256") is None
    assert 11 <= kept.issuing.asked <= 13
    kept.clock.now += 5.0
    before = kept.issuing.asked
    junk = [kept.keys.find(f"more {i}", "RS256") for i in range(100)]
    assert await asyncio.gather(*junk) == [None] * 100
    assert kept.issuing.asked == before + 1


@pytest.mark.parametrize("rotated", [0.0, 0.3, 4.9, 17.2])
async def test_invented_keys_do_not_keep_a_new_one_away(kept: SimpleNamespace, rotated: float) -> None:
    await kept.keys.find("a", "RS256")
    began, invented, found = kept.clock.now, 0, None
    while found is None and kept.clock.now < began + rotated + 60:
        kept.clock.now += 0.1
        invented += 1
        assert await kept.keys.find(f"junk {invented}", "RS256") is None
        if kept.clock.now - began >= rotated:
            kept.issuing.keys = {"b": ec_key("b")}
            found = await kept.keys.find("b", "ES256")
    assert found is not None
    assert kept.clock.now - began - rotated <= 5.2


async def test_a_new_key_is_found_when_it_is_used(kept: SimpleNamespace) -> None:
    old = await kept.keys.find("a", "RS256")
    kept.issuing.keys = {"b": ec_key("b")}
    kept.clock.now += 60.0
    assert await kept.keys.find("b", "ES256")
    assert not kept.keys.trusts(old)
    assert await kept.keys.find("a", "RS256") is None


async def test_another_key_of_the_same_name_is_another(kept: SimpleNamespace) -> None:
    old = await kept.keys.find("a", "RS256")
    assert kept.keys.trusts(old)
    kept.issuing.keys = {"a": rsa_key("b")}
    kept.clock.now += 3600.0
    kept.keys.look()
    await asyncio.sleep(0.001)
    assert not kept.keys.trusts(old)


async def test_what_cannot_be_fetched_leaves_the_old_ones_and_is_tried_again(
    kept: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    key = await kept.keys.find("a", "RS256")
    kept.issuing.down = True
    kept.clock.now += 3600.0
    kept.keys.look()
    await asyncio.sleep(0.001)
    assert (kept.keys.problem, kept.keys.trusts(key)) == ("nobody answers", True)
    assert "stay in force" in caplog.text
    kept.issuing.down = False
    kept.clock.now += 60.0
    kept.keys.look()
    await asyncio.sleep(0.001)
    assert (kept.keys.problem, kept.issuing.asked) == ("", 3)


async def test_one_who_waits_and_goes_ends_no_fetching(kept: SimpleNamespace) -> None:
    go = asyncio.Event()

    async def slowly(issuer: Issuer) -> Any:
        await go.wait()
        return await kept.issuing.fetch(issuer)

    keys = Keys(Issuer(kept.issuing.url, AUDIENCE), slowly)
    first, second = (asyncio.create_task(keys.find("a", "RS256")) for _ in range(2))
    await asyncio.sleep(0.001)
    first.cancel()
    await asyncio.sleep(0.001)
    go.set()
    assert await second
    keys.close()


async def test_a_file_is_read_again_when_it_changes(tmp_path: Path, kept: SimpleNamespace) -> None:
    path = tmp_path / "jwks.json"
    path.write_bytes(kept.issuing.document())
    keys = Keys(Issuer(kept.issuing.url, AUDIENCE, str(path)), now=lambda: 1000.0)
    assert await keys.find("a", "RS256")
    path.write_bytes(b"{")
    assert await keys.find("b", "RS256") is None
    assert "no JSON" in keys.problem
    kept.issuing.keys["b"] = rsa_key("b")
    path.write_bytes(kept.issuing.document())
    assert await keys.find("b", "RS256")
    assert keys.problem == ""
    path.chmod(0o646)
    assert await keys.find("c", "RS256") is None
    assert "every user" in keys.problem
    path.unlink()
    assert await keys.find("c", "RS256") is None
    assert "No such file" in keys.problem
    assert await keys.find("b", "RS256")


def discovery(**said: Any) -> Callable[[Any], None]:
    """The answer of an issuer's openid-configuration, with its own address as issuer."""

    def send(handler: Any) -> None:
        own = f"http://127.0.0.1:{handler.server.server_port}"
        answer = {"issuer": own, "jwks_uri": f"{own}/keys", **said}
        sends(json.dumps(answer).encode())(handler)

    return send


async def test_keys_behind_a_url() -> None:
    keys = sends(Issuing().document)
    with answering({"/keys": keys, CONFIGURATION: discovery()}) as at:
        assert set(await fetched(Issuer("anyone", AUDIENCE, f"{at.url}/keys"))) == {("a", "RS256")}
        assert at.asked == ["/keys"]
        assert set(await fetched(Issuer(at.url, AUDIENCE))) == {("a", "RS256")}
        assert at.asked == ["/keys", CONFIGURATION, "/keys"]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (discovery(issuer="https://other.example"), "of another issuer: 'https://other.example'"),
        (discovery(issuer=None), "of another issuer"),
        (discovery(jwks_uri=None), "no https URL as jwks_uri"),
        (discovery(jwks_uri="http://login.example/keys"), "no https URL as jwks_uri"),
        (discovery(jwks_uri="file:///etc/passwd"), "no https URL as jwks_uri"),
        (sends(b"[]"), "no JSON object"),
        (sends(b"", 404), "answered 404"),
    ],
)
async def test_a_configuration_that_is_of_no_use(answer: Callable[[Any], None], said: str) -> None:
    with answering({CONFIGURATION: answer}) as at:
        with pytest.raises(Unusable, match=said):
            await fetched(Issuer(at.url, AUDIENCE))
        assert at.asked == [CONFIGURATION]


def drips(handler: Any) -> None:
    """A byte now and then, and never an end."""
    handler.send_response(200)
    handler.end_headers()
    try:
        for _ in range(1000):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.05)
    except OSError:
        return


async def test_answers_that_are_no_keys() -> None:
    answers = {
        "/moved": (sends(b"", 302, Location="/keys"), "answered 302"),
        "/down": (sends(b"", 503), "answered 503"),
        "/large": (sends(b" " * (MAX_BYTES + 1)), "more than"),
    }
    with answering({path: answer for path, (answer, _) in answers.items()}) as at:
        for path, (_, said) in answers.items():
            with pytest.raises(Unusable, match=said):
                await fetched(Issuer(at.url, AUDIENCE, at.url + path))
        assert at.asked == list(answers)
    with pytest.raises(Unusable, match="ConnectError"):
        await fetched(Issuer(at.url, AUDIENCE, at.url))


async def test_an_answer_has_seconds_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    assert jwt.FETCH_SECONDS == 5.0
    monkeypatch.setattr(jwt, "FETCH_SECONDS", 0.5)
    with answering({"/drip": drips}) as at, pytest.raises(Unusable, match=r"no answer within 0\.5 s"):
        await fetched(Issuer(at.url, AUDIENCE, f"{at.url}/drip"))


async def test_https_needs_a_certificate_that_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    body = Issuing().document()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    issuer = Issuer("x", AUDIENCE, f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
    for authority_shown, trusted in ((authority, True), (trustme.CA(), False)):
        authority_shown.cert_pem.write_to_path(tmp_path / "ca.pem")
        monkeypatch.setitem(os.environ, "SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        if trusted:
            assert await fetched(issuer)
        else:
            with pytest.raises(Unusable, match="CERTIFICATE_VERIFY_FAILED"):
                await fetched(issuer)
    server.close()
    await server.wait_closed()
