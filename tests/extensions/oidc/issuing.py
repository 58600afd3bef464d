"""An issuer of tokens for tests: its keys, what it signs, and its two documents behind HTTP."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from router.access.issuers import Issuer
from router.extensions.oidc.jwt import Found, keys_in

URL, AUDIENCE = "https://login.example", "lora-router"


@cache
def rsa_key(name: str, bits: int = 2048) -> rsa.RSAPrivateKey:
    """The same for the same name: making one takes a moment."""
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


@cache
def ec_key(name: str) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@cache
def ed_key(name: str) -> ed25519.Ed25519PrivateKey:
    return ed25519.Ed25519PrivateKey.generate()


def jwk_of(kid: str, key: Any, **more: Any) -> dict[str, Any]:
    """A public key as an issuer shows it."""
    kinds = {rsa.RSAPrivateKey: RSAAlgorithm, ec.EllipticCurvePrivateKey: ECAlgorithm}
    kind: Any = next((kinds[one] for one in kinds if isinstance(key, one)), OKPAlgorithm)
    return {**json.loads(kind.to_jwk(key.public_key())), "kid": kid, "use": "sig", **more}


class Issuing:
    """Counts how often its keys are asked for; `down`: nobody answers."""

    def __init__(self, url: str = URL) -> None:
        self.url, self.asked, self.down = url, 0, False
        self.keys: dict[str, Any] = {"a": rsa_key("a")}

    def document(self) -> bytes:
        return json.dumps({"keys": [jwk_of(kid, key) for kid, key in self.keys.items()]}).encode()

    async def fetch(self, issuer: Issuer) -> Found:
        """Instead of the network."""
        self.asked += 1
        if self.down:
            raise OSError("nobody answers")
        return keys_in(self.document(), issuer.algorithms)

    def claims(self, **more: Any) -> dict[str, Any]:
        """Good ones; None takes one out."""
        now = int(time.time())
        said = {"iss": self.url, "aud": AUDIENCE, "sub": "billing", "iat": now, "exp": now + 600, **more}
        return {name: value for name, value in said.items() if value is not None}

    def token(
        self, kid: str = "a", headers: dict[str, Any] | None = None, key: Any = None, **more: Any
    ) -> str:
        """Signed by the issuer's key `kid`, or by another that claims to be it."""
        key = key if key is not None else self.keys[kid]
        kinds = {rsa.RSAPrivateKey: "RS256", ec.EllipticCurvePrivateKey: "ES256"}
        algorithm = next((kinds[one] for one in kinds if isinstance(key, one)), "EdDSA")
        return jwt.encode(self.claims(**more), key, algorithm, headers={"kid": kid, **(headers or {})})

    def table(self, **more: Any) -> str:
        """Its entry in a clients file."""
        said = {"url": self.url, "audience": AUDIENCE, **more}
        return "\n".join(["[[issuer]]", *(f"{key} = {json.dumps(value)}" for key, value in said.items()), ""])

    def client(self, name: str = "billing", subject: str = "", *roles: str) -> str:
        """The entry of a client of it."""
        return (
            f'[[client]]\nid = "{name}"\nissuer = "{self.url}"\nsubject = "{subject or name}"\n'
            f'roles = {list(roles or ("infer",))}\nadapters = ["*"]\n'
        )


@contextmanager
def answering(answers: dict[str, Callable[[BaseHTTPRequestHandler], None]]) -> Iterator[SimpleNamespace]:
    """An HTTP server on this machine: its `url`, and the paths that were `asked`."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            answers[self.path](self)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield SimpleNamespace(url=f"http://127.0.0.1:{server.server_port}", asked=asked)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def sends(body: Callable[[], bytes] | bytes, status: int = 200, **headers: str) -> Callable[[Any], None]:
    """An answer of that server."""

    def send(handler: BaseHTTPRequestHandler) -> None:
        data = body() if callable(body) else body
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(data)

    return send
