"""Tokens of an issuer: attacks known from JWT libraries, floods of junk, and tokens that end under a call."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from router.access.access import Access, Credentials
from router.access.clients import Role, hash_of, new_token
from router.errors import Unauthenticated
from router.extensions.oidc import JwtAuthenticator
from router.v1 import adapters_pb2
from tests.extensions.oidc.issuing import URL, Issuing, answering, ec_key, jwk_of, rsa_key, sends
from tests.security.helpers import bearer
from tests.server.helpers import Connect, Start, ask, details, failure, held, long_stream

GENERATE = "/router.v1.InferenceService/Generate"
HEALTH = "/grpc.health.v1.Health/Check"
OTHER = Issuing("https://other.example")
OTHER.keys = {"a": rsa_key("other"), "o": rsa_key("other")}


def part(said: Any) -> str:
    data = said if isinstance(said, bytes) else json.dumps(said).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unsigned(algorithm: Any, signature: str = "") -> Callable[[Issuing], str]:
    return lambda it: f"{part({'alg': algorithm, 'kid': 'a'})}.{part(it.claims())}.{signature}"


def with_a_shared_secret(secret: Callable[[Any], bytes]) -> Callable[[Issuing], str]:
    """HS256, keyed with what everybody knows of the issuer's key."""

    def token(it: Issuing) -> str:
        signed = f"{part({'alg': 'HS256', 'kid': 'a'})}.{part(it.claims())}"
        key = secret(it.keys["a"].public_key())
        return f"{signed}.{part(hmac.digest(key, signed.encode(), hashlib.sha256))}"

    return token


def signed_as(
    raw: Callable[[Issuing], bytes], headers: dict[str, Any] | None = None
) -> Callable[[Issuing], str]:
    """By the issuer's own key, whatever the claims are as bytes."""
    return lambda it: jwt.api_jws.encode(
        raw(it), it.keys["a"], "RS256", headers={"kid": "a", **(headers or {})}
    )


def claims(**more: Any) -> Callable[[Issuing], str]:
    """Signed by the issuer's own key."""
    return signed_as(lambda it: json.dumps(it.claims(**more)).encode())


def tampered(it: Issuing) -> str:
    head, _, signature = it.token().split(".")
    return f"{head}.{part(it.claims(sub='admin'))}.{signature}"


def embedded(name: str, value: Any) -> Callable[[Issuing], str]:
    """Signed by the attacker's key, which the header brings along or points to."""
    return lambda it: it.token("a", {name: value}, OTHER.keys["o"])


NOW = time.time()
ATTACKS: dict[str, Callable[[Issuing], str]] = {
    "alg none": unsigned("none"),
    "alg none with a signature": unsigned("none", "AAAA"),
    "alg nOnE": unsigned("nOnE", "AAAA"),
    "alg empty": unsigned("", "AAAA"),
    "alg null": unsigned(None, "AAAA"),
    "alg a list": unsigned(["RS256"], "AAAA"),
    "no alg": lambda it: f"{part({'kid': 'a'})}.{part(it.claims())}.AAAA",
    "HS256 with the PEM": with_a_shared_secret(
        lambda key: key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    ),
    "HS256 with the DER": with_a_shared_secret(
        lambda key: key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    ),
    "HS256 with the JWK": with_a_shared_secret(
        lambda key: jwt.algorithms.RSAAlgorithm.to_jwk(key).encode()
    ),
    "HS256 with nothing": with_a_shared_secret(lambda key: b""),
    "RS512, which is not named": lambda it: jwt.encode(it.claims(), it.keys["a"], "RS512", {"kid": "a"}),
    "PS256 under RS256's key": lambda it: jwt.encode(it.claims(), it.keys["a"], "PS256", {"kid": "a"}),
    "ES256 under an RSA key's name": lambda it: it.token("a", key=ec_key("x")),
    "signature of other claims": tampered,
    "no signature": lambda it: it.token().rpartition(".")[0] + ".",
    "signature cut": lambda it: it.token()[:-4],
    "key of another issuer": lambda it: it.token("a", key=OTHER.keys["a"]),
    "token of another issuer": lambda it: OTHER.token("a"),
    "another issuer's token that names the victim": lambda it: OTHER.token("o", iss=URL),
    "iss wrong": claims(iss="https://login.example.evil"),
    "iss with a slash": claims(iss=URL + "/"),
    "iss in capitals": claims(iss=URL.upper()),
    "iss a list": claims(iss=[URL]),
    "iss an object": claims(iss={URL: 1}),
    "no iss": claims(iss=None),
    "aud wrong": claims(aud="lora-router-2"),
    "aud a beginning": claims(aud="lora"),
    "aud others": claims(aud=["a", "b"]),
    "aud none of text": claims(aud=["lora-router", 7]),
    "aud an object": claims(aud={"lora-router": 1}),
    "aud empty": claims(aud=[]),
    "no aud": claims(aud=None),
    "expired": claims(exp=NOW - 1),
    "no exp": claims(exp=None),
    "exp null": signed_as(lambda it: json.dumps({**it.claims(), "exp": None}).encode()),
    "exp text": claims(exp=str(int(NOW) + 600)),
    "exp in unicode digits": claims(exp="٩٩٩٩٩٩٩٩٩٩"),
    "exp true": claims(exp=True),
    "exp infinite": claims(exp=float("inf")),
    "exp no number": claims(exp=float("nan")),
    "exp too large for any clock": signed_as(
        lambda it: json.dumps(it.claims(exp=1)).replace('"exp": 1', '"exp": 1e999').encode()
    ),
    "exp of 5000 digits": signed_as(
        lambda it: json.dumps(it.claims(exp=1)).replace('"exp": 1', f'"exp": {"9" * 5000}').encode()
    ),
    "exp of 400 digits": claims(exp=10**400),
    "exp negative": claims(exp=-1),
    "nbf infinite": claims(nbf=float("-inf")),
    "iat of 400 digits": claims(iat=-(10**400)),
    "exp a list": claims(exp=[NOW + 600]),
    "nbf in the future": claims(nbf=NOW + 86400),
    "nbf text": claims(nbf="0"),
    "iat in the future": claims(iat=NOW + 86400),
    "no sub": claims(sub=None),
    "sub of nobody": claims(sub="nobody"),
    "sub empty": claims(sub=""),
    "sub a list": claims(sub=["billing"]),
    "sub a number": claims(sub=7),
    "sub that only looks alike": claims(sub="bılling"),
    "sub with a NUL": claims(sub="billing\x00"),
    "kid unknown": lambda it: it.token("b", key=it.keys["a"]),
    "kid a path": lambda it: it.token("../../dev/null", key=it.keys["a"]),
    "kid SQL": lambda it: it.token("a' OR 1=1 --", key=it.keys["a"]),
    "kid a number": lambda it: f"{part({'alg': 'RS256', 'kid': 7})}.{part(it.claims())}.{part(b'x')}",
    "no kid": lambda it: jwt.encode(it.claims(), it.keys["a"], "RS256"),
    "jwk of another name": lambda it: it.token("o", {"jwk": jwk_of("o", OTHER.keys["o"])}, OTHER.keys["o"]),
    "jwk": embedded("jwk", jwk_of("a", OTHER.keys["o"])),
    "jku": embedded("jku", "http://127.0.0.1:1/keys"),
    "x5u": embedded("x5u", "http://127.0.0.1:1/cert.pem"),
    "x5c": embedded("x5c", ["AAAA"]),
    "crit unknown": lambda it: it.token("a", {"crit": ["exp"]}),
    "crit empty": lambda it: it.token("a", {"crit": []}),
    "b64 false": signed_as(lambda it: json.dumps(it.claims()).encode(), {"b64": False, "crit": ["b64"]}),
    "claims no JSON": signed_as(lambda it: b"oh"),
    "claims a list": signed_as(lambda it: b"[]"),
    "claims deep": signed_as(lambda it: b"[" * 3000),
    "claims no UTF-8": signed_as(lambda it: b'{"iss": "\xff"}'),
    "header no JSON": lambda it: f"{part(b'oh')}.{part(it.claims())}.{part(b'x')}",
    "header deep": lambda it: f"{part(b'[' * 3000)}.{part(it.claims())}.{part(b'x')}",
    "no base64": lambda it: "a!.b!.c!",
    "padded": lambda it: it.token().replace(".", "=.", 1),
    "empty parts": lambda it: "..",
    "dots": lambda it: "a..b",
    "a part more": lambda it: it.token() + ".x",
    "space": lambda it: it.token() + " ",
    "cut": lambda it: it.token()[:20],
    "oversize": lambda it: it.token(filler="x" * 8192),
    "other digits": lambda it: it.token().replace("e", "\u0665", 1),
    "two tokens": lambda it: f"{it.token()},{it.token()}",
}  # fmt: skip


@pytest.fixture
def guarded(tmp_path: Path) -> SimpleNamespace:
    """Access with an issuer, another one, and a client of each with the same subject."""
    issuing, path = Issuing(), tmp_path / "clients.toml"
    path.write_text(
        issuing.table()
        + OTHER.table(audience="elsewhere")
        + issuing.client()
        + OTHER.client("other", "billing")
    )
    fetch = {URL: issuing.fetch, OTHER.url: OTHER.fetch}
    access = Access(path)
    access.add(JwtAuthenticator(lambda issuer: fetch[issuer.url](issuer)), raised)
    return SimpleNamespace(issuing=issuing, access=access, path=path)


def raised(error: Exception) -> None:
    raise error


async def allowed(access: Access, *headers: str, role: Role = Role.INFER) -> str:
    """Who calls with these headers."""
    access.look()
    credentials = await access.verified(Credentials(headers), role)
    return access.client(credentials, role).id


async def test_a_good_token_is_taken(guarded: SimpleNamespace) -> None:
    assert await allowed(guarded.access, f"Bearer {guarded.issuing.token()}") == "billing"
    assert await allowed(guarded.access, f"Bearer {OTHER.token('o', aud='elsewhere')}") == "other"


@pytest.mark.parametrize("attack", ATTACKS)
async def test_an_attack_is_refused_without_a_hint(guarded: SimpleNamespace, attack: str) -> None:
    with pytest.raises(Unauthenticated) as refused:
        await allowed(guarded.access, f"Bearer {ATTACKS[attack](guarded.issuing)}")
    said = refused.value
    assert (said.reason, said.told, dict(said.metadata)) == ("TOKEN_INVALID", Unauthenticated.told, {})


async def test_a_good_token_in_odd_places_is_refused(guarded: SimpleNamespace) -> None:
    token = guarded.issuing.token()
    own = f"Bearer {token}"
    for headers in ((own, own), (own, "Bearer x"), (token,), (f"Basic {token}",), (f"DPoP {token}",)):
        with pytest.raises(Unauthenticated) as refused:
            await allowed(guarded.access, *headers)
        assert refused.value.reason == "TOKEN_INVALID"


async def test_a_token_of_ours_stays_one_of_ours(guarded: SimpleNamespace) -> None:
    token = new_token("own")
    text = f'[[client]]\nid = "own"\ntoken_sha256 = ["{hash_of(token)}"]\n'
    guarded.path.write_text(guarded.path.read_text() + text)
    assert await allowed(guarded.access, f"Bearer {token}") == "own"


async def test_a_token_decides_over_a_certificate(guarded: SimpleNamespace) -> None:
    bad, good = (f"Bearer {guarded.issuing.token(sub=sub)}" for sub in ("nobody", "billing"))
    guarded.path.write_text(guarded.path.read_text() + '[[client]]\nid = "cert"\ncert = "a.svc"\n')
    guarded.access.look()
    credentials = await guarded.access.verified(Credentials((good,), ("a.svc",)), Role.INFER)
    assert guarded.access.client(credentials, Role.INFER).id == "billing"
    credentials = await guarded.access.verified(Credentials((bad,), ("a.svc",)), Role.INFER)
    with pytest.raises(Unauthenticated):
        guarded.access.client(credentials, Role.INFER)


async def test_health_needs_no_good_token(guarded: SimpleNamespace) -> None:
    assert await allowed(guarded.access, "Bearer a.b.c", role=Role.OPEN) == ""


async def test_junk_makes_no_storm(guarded: SimpleNamespace) -> None:
    """Whatever kid, issuer and algorithm tokens claim, keys are fetched once a minute."""
    key = rsa_key("junk")
    junk = [guarded.issuing.token(f"kid {i}", key=key) for i in range(50)]
    junk += [guarded.issuing.token(f"kid {i}", key=key, iss=f"https://{i}.example") for i in range(50)]

    async def refused(token: str) -> None:
        with pytest.raises(Unauthenticated):
            await allowed(guarded.access, f"Bearer {token}")

    await asyncio.gather(*map(refused, junk))
    for token in junk:
        await refused(token)
    assert guarded.issuing.asked == 1


async def test_a_signature_is_checked_once(guarded: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    access = guarded.access
    access.look()
    credentials = await access.verified(Credentials((f"Bearer {guarded.issuing.token()}",)), Role.INFER)
    monkeypatch.delattr(jwt, "decode")
    async with held(access, credentials, GENERATE, access.client(credentials, Role.INFER)):
        for _ in range(3):
            access.look()
            await asyncio.sleep(0)


# -- A server whose issuer is behind HTTP.


@pytest.fixture
async def served(start_server: Start, connect: Connect, tmp_path: Path) -> Any:
    """A server, stubs, and an issuer on this machine."""
    issuing = Issuing()
    with answering({"/keys": sends(issuing.document)}) as at:
        path = tmp_path / "clients.toml"
        path.write_text(
            issuing.table(jwks=f"{at.url}/keys") + issuing.client("billing", "", "infer", "observe")
        )
        server = await start_server(clients=path)
        yield SimpleNamespace(issuing=issuing, at=at, server=server, stubs=connect(server), path=path)


async def reason(call: Any) -> str:
    """Why it is refused."""
    return str(details(await failure(call))["ErrorInfo"].reason)


async def stale(server: Any) -> float | None:
    server.look()
    said: float | None = server.metrics.registry.get_sample_value(
        "lora_router_credentials_stale", {"file": "jwks"}
    )
    return said


async def test_calls_with_a_token_of_an_issuer(
    served: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "router")
    generate, token = served.stubs.inference.Generate, served.issuing.token()
    assert (await generate(ask(), metadata=bearer(token))).text
    (line,) = [r.fields for r in caplog.records if r.name == "router.server.access"]  # type: ignore[attr-defined]
    assert (line["client"], line["code"]) == ("billing", "OK")
    assert served.at.asked == ["/keys"]
    told = set()
    for bad in (
        "a.b.c",
        served.issuing.token(sub="x"),
        served.issuing.token(exp=1),
        unsigned("none")(served.issuing),
    ):
        refused = await failure(generate(ask(), metadata=bearer(bad)))
        info = details(refused)["ErrorInfo"]
        told.add((refused.code().name, refused.details(), info.reason, tuple(sorted(info.metadata))))
    assert {(code, why) for code, _, why, _ in told} == {("UNAUTHENTICATED", "TOKEN_INVALID")}
    assert len(told) == 1
    assert "Signature has expired" in str([getattr(r, "fields", "") for r in caplog.records])
    assert token.rpartition(".")[2] not in caplog.text
    assert await stale(served.server) == 0


async def test_a_token_of_8_kib_is_taken(served: SimpleNamespace) -> None:
    """Beside other headers: of calls between its two bounds gRPC refuses some at random."""
    short = len(served.issuing.token(filler=""))
    token = served.issuing.token(filler="x" * ((8185 - short) * 3 // 4))
    assert 8150 < len(token) <= 8185
    for _ in range(20):
        metadata = (*bearer(token), ("baggage", "x" * 3000))
        assert (await served.stubs.inference.Generate(ask(), metadata=metadata)).text


async def test_a_running_call_ends_with_its_token(served: SimpleNamespace) -> None:
    served.server.engine.step_seconds = 0.02
    generate, end = served.stubs.inference.StreamGenerate, time.time() + 3600
    ended, goes_on = (
        generate(long_stream(2000), metadata=bearer(served.issuing.token(exp=end + more))) for more in (0, 1)
    )
    for call in (ended, goes_on):
        await anext(aiter(call))
    served.server.access._now = lambda: end
    assert await reason(ended) == "TOKEN_INVALID"
    assert (await anext(aiter(goes_on))).HasField("delta")
    goes_on.cancel()


async def test_a_client_that_is_taken_out_is_refused_and_ended(served: SimpleNamespace) -> None:
    metadata = bearer(served.issuing.token())
    held = served.stubs.adapters.WatchAdapters(adapters_pb2.WatchAdaptersRequest(), metadata=metadata)
    await anext(aiter(held))
    served.path.write_text(served.path.read_text().partition("[[client]]")[0])
    assert await reason(held) == "TOKEN_INVALID"
    assert await reason(served.stubs.inference.Generate(ask(), metadata=metadata)) == "TOKEN_INVALID"


async def test_keys_may_be_replaced_under_traffic(
    served: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate, old = served.stubs.inference.Generate, served.issuing.token()
    assert (await generate(ask(), metadata=bearer(old))).text
    served.issuing.keys["b"] = ec_key("b")
    new = served.issuing.token("b")
    assert await reason(generate(ask(), metadata=bearer(new))) == "TOKEN_INVALID"  # asked for a moment ago
    monkeypatch.setattr("router.extensions.oidc.jwt.UNKNOWN_SECONDS", 0.0)
    assert (await generate(ask(), metadata=bearer(new))).text
    assert (await generate(ask(), metadata=bearer(old))).text
    del served.issuing.keys["a"]
    monkeypatch.setattr("router.extensions.oidc.jwt.REFRESH_SECONDS", 0.0)
    held = served.stubs.adapters.WatchAdapters(adapters_pb2.WatchAdaptersRequest(), metadata=bearer(old))
    assert await reason(held) == "TOKEN_INVALID"
    assert (await generate(ask(), metadata=bearer(new))).text


async def test_an_issuer_that_is_down_at_start_keeps_nobody_else_out(
    start_server: Start, connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    issuing, path, token = Issuing(), tmp_path / "clients.toml", new_token("own")
    own = f'[[client]]\nid = "own"\ntoken_sha256 = ["{hash_of(token)}"]\nroles = ["infer"]\n'
    up = False

    def answer(handler: Any) -> None:
        sends(issuing.document() if up else b"", 200 if up else 503)(handler)

    with answering({"/keys": answer}) as at:
        path.write_text(own + issuing.table(jwks=f"{at.url}/keys") + issuing.client())
        server = await start_server(clients=path)
        generate = connect(server).inference.Generate
        assert (await generate(ask(), metadata=bearer(token))).text
        assert await reason(generate(ask(), metadata=bearer(issuing.token()))) == "TOKEN_INVALID"
        assert await stale(server) == 1
        assert server.access.keys_problem.endswith("answered 503")
        up = True
        monkeypatch.setattr("router.extensions.oidc.jwt.UNKNOWN_SECONDS", 0.0)
        assert (await generate(ask(), metadata=bearer(issuing.token()))).text
        assert await stale(server) == 0
