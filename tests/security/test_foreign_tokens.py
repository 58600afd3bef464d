"""Tokens of other schemes are nobody's: nothing in them is believed, whatever they say of themselves."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from tests.security.helpers import bearer, write_clients
from tests.server.helpers import Connect, Start, ask, details, failure


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
