"""Edge and replica over a real socket: the contract of engines, and who is let in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import grpc
import pytest

from router.cli.fleet import EdgeEncoder
from router.engine.base import AdapterArtifact, Engine
from router.engine.fake import FakeEngine
from router.engine.prompt import PromptEncoder
from router.errors import ConfigError
from router.registry.format.artifact import FolderRules, read_artifact
from router.replicas.engine import FleetEngine
from router.replicas.link import Link, LinkLost, Security
from router.replicas.membership import FixedMembership, FoundMembership
from tests.engine import tiny
from tests.engine.contract import CONTEXT, QUEUE, ROWS, EngineContract, answer, job, until
from tests.engine.test_contract import TestTorchEngine, fake_adapter
from tests.replicas.served import ServedLink
from tests.security.test_tls import Files

FAKE = partial(FakeEngine, step_seconds=0.001, max_running=ROWS, max_queue=QUEUE, context_length=CONTEXT)


class OverGrpc(EngineContract):
    """The contract of engines over one replica; in plain text, with a secret."""

    @pytest.fixture(autouse=True)
    def _ended(self) -> Iterator[None]:
        self.links: list[ServedLink] = []
        yield
        for link in self.links:
            link.kill()

    def link(self) -> ServedLink:
        return ServedLink("0", FAKE, Security("secret"))

    def make(self) -> Engine:
        self.links.append(self.link())
        return FleetEngine(FixedMembership(self.links[-1:]), FakeEngine, max_running=ROWS, max_queue=QUEUE)

    def artifact(self, engine: Engine, name: str, invocation: tuple[int, ...] = ()) -> AdapterArtifact:
        return fake_adapter(name, invocation)


def mutual(files: Files) -> tuple[Security, grpc.ServerCredentials]:
    """Certificates on both sides."""
    own = files.client("edge.example")
    security = Security("", files.ca, own["client_cert"], own["client_key"])
    pair = (files.key.read_bytes(), files.cert.read_bytes())
    return security, grpc.ssl_server_credentials([pair], files.ca.read_bytes(), True)


class TestOverMutualTls(OverGrpc):
    @pytest.fixture(autouse=True)
    def _files(self, tmp_path: Path) -> None:
        self.files = Files(tmp_path)

    def link(self) -> ServedLink:
        return ServedLink("0", FAKE, *mutual(self.files))


class TinyEncoder(EdgeEncoder):
    def __init__(self) -> None:
        self._encoder = PromptEncoder(tiny.tokenizer())


class TestTorchOverGrpc(TestTorchEngine):
    """The contract of engines over one replica with the engine on torch, which reads adapters itself."""

    @pytest.fixture(autouse=True)
    def _ended(self) -> Iterator[None]:
        self.links: list[ServedLink] = []
        yield
        for link in self.links:
            link.kill()

    def make(self) -> Engine:
        made = super().make()

        def read(folder: Path) -> AdapterArtifact:
            return read_artifact(folder, FolderRules(made.info))[0]

        self.links.append(ServedLink("0", lambda: made, Security("secret"), read=read))
        return FleetEngine(FixedMembership(self.links[-1:]), TinyEncoder, max_running=ROWS, max_queue=QUEUE)


@pytest.fixture
def served() -> Iterator[Callable[..., ServedLink]]:
    """`served(security, credentials)`: a replica that runs."""
    links: list[ServedLink] = []

    def make(*secured: object) -> ServedLink:
        links.append(ServedLink("0", FAKE, *secured))  # type: ignore[arg-type]
        links[-1].start()
        return links[-1]

    yield make
    for link in links:
        link.kill()


def test_who_does_not_know_the_secret_is_refused(served: Callable[..., ServedLink]) -> None:
    link = served(Security("secret"))
    for security in (Security("other"), Security()):
        with pytest.raises(ConfigError, match=r"replica r does not accept this edge: .*replica_secret"):
            Link("r", link.address, security, 5.0).start()


async def test_one_with_another_secret_does_not_stop_an_edge(served: Callable[..., ServedLink]) -> None:
    good, other = served(Security("secret")), served(Security("other"))
    found = FoundMembership([other.address, good.address], Security("secret"))
    engine = FleetEngine(found, FakeEngine, max_running=ROWS, max_queue=QUEUE)
    await asyncio.to_thread(engine.start)
    await until(lambda: len(engine.status().flaws) == 1)
    assert "the secret is not that of this replica (replica_secret)" in engine.status().flaws[0]
    assert (await answer(engine, job(engine)))[0]
    await asyncio.to_thread(engine.close)


async def test_no_stream_is_open_to_strangers(served: Callable[..., ServedLink]) -> None:
    """A stream that the replica ended before its first message was out is an internal error to grpc's client,
    so such a call is made again."""
    link = served(Security("secret"))
    stranger = Link("r", link.address, Security("other"), 5.0)
    for _ in range(50):
        with pytest.raises(LinkLost) as caught:
            await anext(stranger.batches("edge"))
        if "Internal error" not in str(caught.value):
            break
    assert "the secret is not that of this replica" in str(caught.value)


def test_certificates_decide_on_both_sides(served: Callable[..., ServedLink], tmp_path: Path) -> None:
    files = Files(tmp_path)
    security, credentials = mutual(files)
    link = served(security, credentials)
    without = Security("", files.ca)  # no certificate of its own
    (tmp_path / "other").mkdir()
    strange = mutual(Files(tmp_path / "other"))[0]  # of another CA, so it trusts no such replica either
    for wrong in (without, strange, Security()):
        with pytest.raises(LinkLost):
            Link("r", link.address, wrong, 5.0).start()
    with pytest.raises(ConfigError, match=r"cannot read .*missing\.pem"):
        Link("r", link.address, Security("", tmp_path / "missing.pem"), 5.0).start()


def test_nobody_there_is_an_error_at_once() -> None:
    with pytest.raises(LinkLost, match=r"(?i)connect"):
        Link("r", "127.0.0.1:9", Security(), 30.0).start()


def test_a_proxy_for_the_web_is_not_asked(
    served: Callable[..., ServedLink], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    assert served(Security("secret")).start().base.name == "fake"
