"""`python -m benchmarks.check_cost`: what it costs to ask who calls, and TLS, on the real base.

Servers on one engine and one event loop are asked in turn from another process: one open to everybody, one
with a clients file, quotas and audit, the same for a client with an issuer's token, with TLS, and with client
certificates as well.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import jwt
import trustme
from cryptography.hazmat.primitives.asymmetric import rsa

from benchmarks import report
from benchmarks.grpc_stream import texts
from benchmarks.prompts import NEW_TOKENS, REQUESTS
from router.access.clients import hash_of, new_token
from router.client import AsyncClient
from router.config import Settings
from router.engine.torch_engine import TorchEngine
from router.plugins import PluginHost
from router.registry.registry import Registry
from router.routing.router import Router
from router.server.app import ServerApp

HOST = "127.0.0.1"
CERTIFIED = "bench.example"
OPEN, CHECKED, JWT, TLS, MUTUAL = (
    "open",
    "clients, quotas, audit",
    "the same, JWT by RS256",
    "the same, TLS",
    "the same, client certificates",
)
AGAIN = "open, once more"  # tells what two servers differ by that do not differ
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


# -- The client's process.


async def client(arms: Mapping[str, Mapping[str, Any]]) -> None:
    """A line of JSON for a round on standard input, a line of what was measured back."""
    clients = {
        name: AsyncClient(arm["target"], timeout=120, **{k: v for k, v in arm.items() if k != "target"})
        for name, arm in arms.items()
    }
    while line := await asyncio.to_thread(sys.stdin.readline):
        seed, found = int(line), {name: {} for name in arms}  # type: dict[str, dict[str, Any]]
        rng = random.Random(seed)
        for place, name in enumerate(rng.sample(list(arms), len(arms))):
            found[name]["tokens"] = await throughput(clients[name], texts(1000 * seed + place))
        for what, count in ((first_token, FIRST_TOKENS), (routed, ROUTES)):
            for i in range(count):
                for place, name in enumerate(rng.sample(list(arms), len(arms))):
                    seconds = await what(clients[name], f"{seed} {i} {place} what is the river's name")
                    found[name].setdefault(what.__name__, []).append(seconds)
        print(json.dumps(found), flush=True)


async def throughput(client: AsyncClient, prompts: Sequence[str]) -> float:
    """Tokens a second of so many streams at once."""

    async def one(text: str) -> int:
        events = client.stream(text, adapter="base", max_tokens=NEW_TOKENS, min_tokens=NEW_TOKENS)
        return sum([getattr(event, "tokens", 0) async for event in events])

    began = time.perf_counter()
    tokens = sum(await asyncio.gather(*map(one, prompts)))
    return tokens / (time.perf_counter() - began)


async def first_token(client: AsyncClient, text: str) -> float:
    """Seconds until the only token of an answer."""
    began = time.perf_counter()
    async for event in client.stream(text, adapter="base", max_tokens=1):
        if getattr(event, "tokens", 0):
            return time.perf_counter() - began
    raise RuntimeError("an answer without a token")


async def routed(client: AsyncClient, text: str) -> float:
    """Seconds of a `Route`."""
    began = time.perf_counter()
    await client.route(text)
    return time.perf_counter() - began


# -- What starts it all.


async def ask(process: Process, seed: int) -> dict[str, dict[str, Any]]:
    """One round."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{seed}\n".encode())
    answer: dict[str, dict[str, Any]] = json.loads(await process.stdout.readline())
    return answer


async def rounds_of(arms: Mapping[str, Mapping[str, Any]], rounds: int) -> list[dict[str, dict[str, Any]]]:
    """Rounds after a first that is thrown away."""
    command = [sys.executable, "-m", "benchmarks.check_cost", "--client", json.dumps(arms)]
    process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, limit=2**24)
    found = []
    for seed in range(rounds + 1):
        found.append(await ask(process, seed))
        print(f"round {seed} of {rounds}", flush=True)
    process.kill()
    await process.wait()
    return found[1:]


async def measure(rounds: int) -> list[dict[str, dict[str, Any]]]:
    """All servers on one engine and one event loop."""
    engine = TorchEngine(Settings())
    await asyncio.to_thread(engine.start)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        registry = Registry(engine, [folder / "adapters"])
        router = Router(registry, PluginHost([]))
        await registry.start()
        await router.start()
        secrets, arms, apps = Secrets(folder), {}, []
        for name in (OPEN, CHECKED, JWT, TLS, MUTUAL, AGAIN):
            said, brought = secrets.arm(name)
            settings = Settings(listen=f"{HOST}:0", metrics_listen="", **said)
            app = ServerApp(settings, engine, registry, router, nothing)
            await app.start()
            await app.ready.wait()
            arms[name] = {"target": app.address, **brought}
            apps.append(app)
        found = await rounds_of(arms, rounds)
        for app in apps:
            await app.stop()
        await router.close()
        await registry.close()
    return found


async def nothing() -> None:
    """The engine runs already."""


def summary(rounds: Sequence[Mapping[str, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """A row for each arm: medians, and what it adds to the open one in the same rounds."""

    def middle(name: str, what: str) -> float:
        return median(value for one in rounds for value in one[name][what])

    def added(name: str, what: str) -> float:
        differences = [
            mine - other
            for one in rounds
            for mine, other in zip(one[name][what], one[OPEN][what], strict=True)
        ]
        return median(differences) * 1000

    return [
        {
            "server": name,
            "tokens/s": median(one[name]["tokens"] for one in rounds),
            "against open": median(one[name]["tokens"] / one[OPEN]["tokens"] for one in rounds),
            "first token ms": middle(name, "first_token") * 1000,
            "added ms": added(name, "first_token"),
            "Route ms": middle(name, "routed") * 1000,
            "Route added ms": added(name, "routed"),
        }
        for name in rounds[0]
    ]


def main() -> None:
    """Measure and write results; with --client, be the client."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--client", metavar="ARMS", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.client:
        asyncio.run(client(json.loads(args.client)))
        return
    rows = summary(asyncio.run(measure(args.rounds)))
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
