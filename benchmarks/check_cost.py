"""`python -m benchmarks.check_cost`: what it costs to ask who calls, and TLS, on the real base.

Servers on one engine and one event loop are asked in turn from another process: one open to everybody, one
with a clients file, quotas and audit, the same for a client with an issuer's token, with TLS, and with client
certificates as well.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path

import jwt
import trustme
from cryptography.hazmat.primitives.asymmetric import rsa

from benchmarks import report
from benchmarks.answering import NEW_TOKENS, REQUESTS
from benchmarks.serving import HOST, Found, compared, in_turn, nothing, parts, served
from router.access.clients import hash_of, new_token
from router.config import Settings
from router.engine.torch_engine import TorchEngine
from router.plugins import Hooks, PluginHost
from router.server.app import ServerApp

CERTIFIED = "bench.example"
OPEN, CHECKED, JWT, TLS, MUTUAL = (
    "open",
    "clients, quotas, audit",
    "the same, JWT by RS256",
    "the same, TLS",
    "the same, client certificates",
)
AGAIN = "open, once more"  # tells what two servers differ by that do not differ
NAMES = (OPEN, CHECKED, JWT, TLS, MUTUAL, AGAIN)
FIRST_TOKENS, ROUTES = 40, 100  # of a round, each
TARGETS = "targets: 3 % of throughput and 0.3 ms of time to first token for the checks"


class Secrets:
    """A CA, certificates and a clients file in a folder."""

    def __init__(self, folder: Path) -> None:
        self.token = new_token("bench")
        self.ca, self.clients = folder / "ca.pem", folder / "clients.toml"
        authority = trustme.CA()
        authority.cert_pem.write_to_path(self.ca)
        self.server = self._issue(authority, folder, HOST)
        self.client = self._issue(authority, folder, CERTIFIED)
        quotas = "requests_per_minute = 1000000\ntokens_per_minute = 100000000\nmax_concurrent = 1000\n"
        rest = f'roles = ["infer"]\nadapters = ["*"]\n{quotas}'
        self.clients.write_text(
            self._issuer(folder) + f'[[client]]\nid = "issued"\nissuer = "bench"\nsubject = "bench"\n{rest}'
            f'[[client]]\nid = "bench"\ntoken_sha256 = ["{hash_of(self.token)}"]\n{rest}'
            f'[[client]]\nid = "certified"\ncert = "{CERTIFIED}"\n{rest}'
        )

    def _issuer(self, folder: Path) -> str:
        """An issuer's entry; keeps a token of it, with claims such as those of real ones."""
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        public = {**json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key())), "kid": "bench"}
        (folder / "jwks.json").write_text(json.dumps({"keys": [public]}))
        now = int(time.time())
        claims = {"iss": "bench", "aud": "bench", "sub": "bench", "iat": now, "exp": now + 86400}
        more = {"jti": "0" * 36, "azp": "bench", "scope": "openid profile email", "groups": ["team"] * 10}
        self.jwt = jwt.encode(claims | more, key, "RS256", {"kid": "bench"})
        return f'[[issuer]]\nurl = "bench"\naudience = "bench"\njwks = "{folder / "jwks.json"}"\n'

    @staticmethod
    def _issue(authority: trustme.CA, folder: Path, name: str) -> tuple[Path, Path]:
        made = authority.issue_cert(name)
        cert, key = folder / f"{name}.pem", folder / f"{name}.key"
        made.private_key_pem.write_to_path(key)
        cert.write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
        return cert, key

    def arm(self, name: str) -> tuple[dict[str, Path], dict[str, str]]:
        """Settings of its server, and what its client brings."""
        if name in (OPEN, AGAIN):
            return {}, {}
        said = {"clients": self.clients, "audit": self.ca.parent / f"audit of {name}.jsonl"}
        if name == CHECKED:
            return said, {"token": self.token}
        if name == JWT:
            return said, {"token": self.jwt}
        said |= {"tls_cert": self.server[0], "tls_key": self.server[1]}
        if name == TLS:
            return said, {"token": self.token, "tls_ca": str(self.ca)}
        cert, key = map(str, self.client)
        brought = {"tls_ca": str(self.ca), "client_cert": cert, "client_key": key}
        return {**said, "tls_client_ca": self.ca}, brought


async def measure(rounds: int) -> list[Found]:
    """All servers on one engine and one event loop."""
    engine = TorchEngine(Settings())
    with tempfile.TemporaryDirectory() as place:
        secrets, servers = Secrets(Path(place)), {}
        async with parts(engine) as (registry, router), AsyncExitStack() as stack:
            for name in NAMES:
                said, brought = secrets.arm(name)
                settings = Settings(listen=f"{HOST}:0", metrics_listen="", **said)
                hooks = Hooks(PluginHost([], built_in=True))  # they know the tokens of issuers
                app = ServerApp(settings, engine, registry, router, nothing, hooks=hooks)
                await stack.enter_async_context(served(app))
                servers[name] = {"target": app.address, **brought}
            return await in_turn(servers, rounds, FIRST_TOKENS, ROUTES)


def main() -> None:
    """Measure and write results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    args = parser.parse_args()
    rows = compared(asyncio.run(measure(args.rounds)), NAMES)
    print(report.table(rows))
    workload = (
        f"The default base without adapters. Throughput: {REQUESTS} streams at once, about 90 prompt and "
        f"{NEW_TOKENS} new tokens each. First token: one request at a time, {FIRST_TOKENS} a round, and "
        f"{ROUTES} calls of Route, the servers in turn; added: median of differences within a turn. "
        f"{args.rounds} rounds. Six servers on one engine in one process, "
        "the client in another; one works at a time."
    )
    print("written to", report.write("check-cost", workload, rows, [TARGETS]))


if __name__ == "__main__":
    main()
