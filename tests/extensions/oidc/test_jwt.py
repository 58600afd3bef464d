"""Tokens of issuers: whom one names, and until when; the attacks are in test_jwt_attacks.py."""

from __future__ import annotations

import base64
import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.access.issuers import Issuer
from router.errors import Unauthenticated
from router.extensions.oidc.jwt import Tokens, is_jwt
from tests.extensions.oidc.issuing import AUDIENCE, URL, Issuing, ec_key, ed_key, rsa_key


def tokens(issuing: Issuing, **more: Any) -> Tokens:
    found = Tokens(issuing.fetch)
    found.follow({URL: Issuer(URL, AUDIENCE, **more)})
    return found


@pytest.mark.parametrize("make", [rsa_key, ec_key, ed_key])
async def test_whom_a_token_names(make: Any) -> None:
    issuing = Issuing()
    issuing.keys = {"k": make("a")}
    checked = tokens(issuing)
    end = int(time.time()) + 60
    proof = await checked.proven(issuing.token("k", exp=end, nbf=end - 100))
    assert (proof.issuer.url, proof.subject, proof.expires) == (URL, "billing", end)
    assert checked.holds(proof, end - 0.1)
    assert not checked.holds(proof, end)


@pytest.mark.parametrize(
    "more", [{"aud": ["other", AUDIENCE]}, {"iat": None}, {"typ": "x"}, {"exp": time.time() + 3600.5}]
)
async def test_what_else_is_good(more: dict[str, Any]) -> None:
    issuing = Issuing()
    assert await tokens(issuing).proven(issuing.token(**more))


async def test_leeway_lengthens_a_token() -> None:
    issuing, now = Issuing(), int(time.time())
    late = issuing.token(exp=now - 5, nbf=now + 5, iat=now + 5)
    with pytest.raises(Unauthenticated):
        await tokens(issuing).proven(late)
    checked = tokens(issuing, leeway_seconds=30)
    proof = await checked.proven(late)
    assert checked.holds(proof, now + 24.9)
    assert not checked.holds(proof, now + 25)


@pytest.mark.parametrize(
    "more", [{"audience": "other"}, {"jwks": "/none"}, {"algorithms": ("ES256",)}, {"leeway_seconds": 1.0}]
)
async def test_a_proof_is_worth_nothing_when_its_issuer_is_another(more: dict[str, Any]) -> None:
    issuing = Issuing()
    checked = tokens(issuing)
    proof = await checked.proven(issuing.token())
    checked.follow({URL: Issuer(URL, AUDIENCE)})
    assert checked.holds(proof, time.time())
    checked.follow({URL: Issuer(URL, **{"audience": AUDIENCE, **more})})
    assert not checked.holds(proof, time.time())
    checked.follow({})
    assert not checked.holds(proof, time.time())
    checked.close()


async def test_keys_are_fetched_as_soon_as_an_issuer_is_known_and_not_for_another_audience() -> None:
    issuing = Issuing()
    checked = tokens(issuing)
    await checked.proven(issuing.token())
    checked.follow({URL: Issuer(URL, "other", leeway_seconds=1)})
    await checked.proven(issuing.token(aud="other"))
    assert issuing.asked == 1


async def test_keys_that_cannot_be_fetched_are_told() -> None:
    issuing = Issuing()
    issuing.down = True
    checked = tokens(issuing)
    assert checked.problem == ""
    with pytest.raises(Unauthenticated, match="not the issuer's"):
        await checked.proven(issuing.token())
    assert checked.problem == "nobody answers"
    checked.follow({})
    assert checked.problem == ""


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from([URL, AUDIENCE, "a"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)
CLAIMS = st.dictionaries(st.sampled_from(["iss", "aud", "sub", "exp", "nbf", "iat", "jti", "x"]), VALUES)
HEADERS = st.dictionaries(st.sampled_from(["alg", "kid", "crit", "b64", "typ", "cty", "jku", "x5c"]), VALUES)
SIGNED = Issuing()
SIGNED.keys = {"a": ed_key("a")}


@given(CLAIMS, HEADERS)
async def test_whatever_is_signed_is_a_proof_or_refused(
    claims: dict[str, Any], header: dict[str, Any]
) -> None:
    """By the issuer's own key, so that all of it is looked at."""

    def part(said: bytes) -> bytes:
        return base64.urlsafe_b64encode(said).rstrip(b"=")

    parts = {"alg": "EdDSA", "kid": "a"} | header, SIGNED.claims() | claims
    signed = b".".join(part(json.dumps(one).encode()) for one in parts)
    token = b".".join([signed, part(ed_key("a").sign(signed))]).decode()
    try:
        proof = await tokens(SIGNED).proven(token)
    except Unauthenticated:
        return
    assert proof.subject == (SIGNED.claims() | claims)["sub"]


@given(st.text(), st.text(), st.text())
async def test_any_text_is_refused(header: str, claims: str, signature: str) -> None:
    with pytest.raises(Unauthenticated):
        await tokens(SIGNED).proven(f"{header}.{claims}.{signature}")


def test_what_looks_like_one() -> None:
    assert is_jwt(Issuing().token())
    assert not is_jwt("lrk_billing_" + "A" * 43)
    assert not is_jwt("a.b")
    assert not is_jwt("a.b.c.d.e")
