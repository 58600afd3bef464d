"""Servers that follow one bucket, as processes, with the driver of S3 and a server that speaks it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import pytest

from router.cli.demo import free_address
from router.client import Client, ClientError
from tests.cli.tiny import write_adapter
from tests.sources.moto import KEYS, moto, site_with_s3

PREFIX = "s3://bucket/adapters"
SECONDS = 30.0  # for what takes five
pytestmark = [pytest.mark.interop, pytest.mark.long, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def site():
    return site_with_s3()


@dataclass
class Bucket:
    """`bucket` of a store."""

    url: str
    folder: Path
    client: httpx2.Client = field(init=False)

    def __post_init__(self) -> None:
        signed = "AWS4-HMAC-SHA256 Credential=key/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, "
        headers = {"authorization": f"{signed}Signature=unchecked"}  # without, nothing is written twice
        self.client = httpx2.Client(base_url=self.url, trust_env=False, headers=headers)

    def upload(self, place: str, b: float, name: str, rest: int = 0) -> None:
        """An adapter with these weights, its manifest last; all but the last `rest` files of it."""
        manifest = f'[adapter]\nname = "{name}"\nversion = "1.0.0"\n'
        made = write_adapter(self.folder / f"{name}-{b}-{time.monotonic_ns()}", b=b, manifest=manifest)
        paths = sorted(made.iterdir(), key=lambda path: path.name == "adapter.toml")
        for path in paths[: len(paths) - rest]:
            self.client.put(
                f"/bucket/adapters/{place}/{path.name}", content=path.read_bytes()
            ).raise_for_status()

    def drop(self, place: str) -> None:
        for name in ("adapter.toml", "adapter_config.json", "adapter_model.safetensors"):
            self.client.delete(f"/bucket/adapters/{place}/{name}").raise_for_status()


@pytest.fixture
def bucket(site, tmp_path):
    with moto(site) as url:
        yield Bucket(url, tmp_path)


class Server:
    """A process with a state folder of its own, as on a machine of its own."""

    def __init__(self, site: Path, folder: Path, environment: Mapping[str, str]) -> None:
        self.address, self.metrics, self.folder = free_address(), free_address(), folder
        folder.mkdir(exist_ok=True)
        alone = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "FSSPEC_"))}
        flags = ["--listen", self.address, "--metrics-listen", self.metrics, "--adapters-dir", PREFIX]
        sets = ("mirrors.seconds=0.5", "load_plugins=", "experiments=", "lame_duck_seconds=0.1")
        flags += ["--gate", "off", *(part for one in sets for part in ("--set", one))]
        with (folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.sources.mirror.serve_store", str(site), "serve", *flags],
                stdout=subprocess.DEVNULL,
                stderr=log,
                env=alone
                | {"XDG_STATE_HOME": str(folder), "AWS_EC2_METADATA_DISABLED": "true"}
                | environment,
            )

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def digest(self, name: str) -> str:
        """Whose bytes answer; '' while nobody does."""
        try:
            with Client(self.address, timeout=10) as client:
                return client.generate("hello", adapter=name, max_tokens=1).decision.digest
        except ClientError:
            return ""

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def serve(site, bucket, tmp_path):
    with ExitStack() as made:

        def serve(name: str, **environment: str) -> Server:
            keys = {**KEYS, "FSSPEC_S3_ENDPOINT_URL": bucket.url, **environment}
            server = Server(site, tmp_path / name, keys)
            made.callback(server.kill)
            return server

        yield serve


def until(wanted: Callable[[], object], what: str) -> None:
    end = time.monotonic() + SECONDS
    while not wanted():
        assert time.monotonic() < end, what
        time.sleep(0.1)


def ready(server: Server) -> bool:
    assert server.process.poll() is None, server.log
    try:
        return httpx2.get(f"http://{server.metrics}/readyz", trust_env=False).status_code == 200
    except httpx2.TransportError:
        return False


@contextmanager
def asking(servers: list[Server], name: str) -> Iterator[list[set[str]]]:
    """Streams at all servers, one after the other; gives the digests that answered. None of them may fail."""
    done, faults = threading.Event(), list[Exception]()
    seen: list[set[str]] = [set() for _ in servers]

    def ask(server: Server, digests: set[str]) -> None:
        with Client(server.address, timeout=20) as client:
            while not done.is_set():
                try:
                    answer = client.generate("a long question", adapter=name, max_tokens=12)
                    digests.add(answer.decision.digest)
                except Exception as fault:
                    faults.append(fault)

    threads = [threading.Thread(target=ask, args=pair) for pair in zip(servers, seen, strict=True)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert faults == []


def test_two_servers_follow_one_bucket(bucket, serve):
    bucket.upload("first", 0.5, "first")
    servers = [serve("one"), serve("two")]
    for server in servers:
        until(lambda server=server: ready(server), server.log)
        assert server.digest("first"), "a start waits for what is there"
    bucket.upload("contracts/1.0.0", 0.5, "contracts")
    for server in servers:
        until(lambda server=server: server.digest("contracts"), "an upload is served")
    (old,) = {server.digest("contracts") for server in servers}
    with asking(servers, "contracts") as seen:
        bucket.upload("contracts/1.0.0", 0.25, "contracts")
        for digests in seen:
            until(lambda digests=digests: digests - {old}, "the new one is served")
    (new,) = {server.digest("contracts") for server in servers}
    assert [digests for digests in seen if digests != {old, new}] == []
    bucket.drop("contracts/1.0.0")
    for server in servers:
        until(lambda server=server: not server.digest("contracts"), "a removed one goes")
        assert server.digest("first")
        server.process.send_signal(signal.SIGTERM)
    assert [server.process.wait(30) for server in servers] == [0, 0], servers[0].log


def test_one_that_is_killed_at_any_moment_serves_whole_adapters(bucket, serve):
    for number in range(8):
        server = serve("one")
        until(lambda server=server: ready(server), server.log)
        bucket.upload("contracts", 0.5 + number / 100, "contracts")
        time.sleep(0.4 * number)
        server.kill()
        root = next(server.folder.glob("lora-router/mirrors/*/adapters"))
        found = [sorted(path.name for path in folder.iterdir()) for folder in root.iterdir()]
        whole = ["adapter.toml", "adapter_config.json", "adapter_model.safetensors", "source.toml"]
        assert found in ([], [whole])
    server = serve("one")
    until(lambda: ready(server) and server.digest("contracts"), server.log)


def test_a_store_that_goes_away_and_a_start_without_it(bucket, serve):
    bucket.upload("first", 0.5, "first")
    server = serve("one")
    until(lambda: ready(server), server.log)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(30) == 0
    server = serve("one", FSSPEC_S3_ENDPOINT_URL="http://127.0.0.1:1")
    until(lambda: ready(server), server.log)
    assert server.digest("first")
    page = httpx2.get(f"http://{server.metrics}/readyz", trust_env=False).json()
    assert any("do not follow it since" in flaw for flaw in page["degraded"]), page


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "wants credentials"),
        ({"LORA_ROUTER_ADAPTERS_DIR": "s3://nobucket/adapters"}, "not found: nothing is there"),
    ],
)
def test_what_is_wrong_at_a_start_is_one_line(serve, monkeypatch, environment, message):
    if "LORA_ROUTER_ADAPTERS_DIR" in environment:
        monkeypatch.setitem(globals(), "PREFIX", environment["LORA_ROUTER_ADAPTERS_DIR"])
    server = serve("one", **environment)
    assert server.process.wait(60) == 1
    (line,) = [line for line in server.log.splitlines() if line.startswith("lora-router: ")]
    assert message in line
    assert "Traceback" not in server.log
