"""Edges and replicas that are replaced one by one, and those of two releases that cannot work together."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator

import grpc
import pytest

from router.errors import ConfigError
from router.replicas import messages
from router.replicas.link import Link, Security
from router.replicas.messages import OLDEST, PROTOCOL
from tests.engine.contract import until
from tests.replicas import test_link
from tests.replicas.processes import ServerProcess, Standing
from tests.replicas.served import ServedLink
from tests.server.helpers import ask, long_stream


@pytest.fixture
def served() -> Iterator[Callable[..., ServedLink]]:
    """`served(kind)`: a replica that runs."""
    made: list[ServedLink] = []

    def make(kind: type[ServedLink] = ServedLink) -> ServedLink:
        made.append(kind(str(len(made)), test_link.FAKE))
        made[-1].start()
        return made[-1]

    yield make
    for link in made:
        link.kill()


def test_what_cannot_work_together_is_refused_with_what_to_upgrade(
    served: Callable[..., ServedLink], monkeypatch: pytest.MonkeyPatch
) -> None:
    at = served().address
    monkeypatch.setattr(messages, "OLDEST", PROTOCOL + 1)
    with pytest.raises(ConfigError, match=r"replica r .* needs 4 or later: upgrade the replica"):
        Link("r", at, Security(), 5.0).start()
    monkeypatch.setattr(messages, "OLDEST", OLDEST)
    monkeypatch.setattr(messages, "PROTOCOL", 0)
    with pytest.raises(ConfigError, match=r"replica r .* needs protocol 3 or later, .* upgrade the edge"):
        Link("r", at, Security(), 5.0).start()


class Balancer:
    """Clients whose calls go to the edges that it knows, in turn, one after the other by each client."""

    def __init__(self, edges: list[ServerProcess]) -> None:
        self.edges = edges
        self.answered = 0
        self.lost: list[str] = []
        self._stop = asyncio.Event()
        self._clients: list[asyncio.Task[None]] = []

    def start(self, clients: int) -> None:
        self._clients = [asyncio.create_task(self._client(at)) for at in range(clients)]

    async def stop(self) -> None:
        self._stop.set()
        await asyncio.gather(*self._clients)

    async def _client(self, at: int) -> None:
        while not self._stop.is_set():
            at += 1
            stub = self.edges[at % len(self.edges)].inference
            try:
                if at % 3 == 0:
                    answer = [m async for m in stub.StreamGenerate(long_stream(60))][-1]
                    good = answer.finished.usage.completion_tokens == 60
                else:
                    name = ("base", "medical", "legal")[at % 5 % 3]
                    answer = await stub.Generate(ask(routing={"adapter": f"adapters/{name}"}))
                    good = answer.text.endswith("] one two three")
                if not good:
                    self.lost.append(str(answer))
            except grpc.aio.AioRpcError as error:
                self.lost.append(f"{error.code().name}: {error.details()}")
            self.answered += 1

    async def more(self) -> None:
        """Some answers later."""
        seen = self.answered
        await until(lambda: self.answered > seen + 50, 90)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("first", ["edges", "replicas"])
async def test_a_rolling_restart_of_edges_and_replicas_loses_no_accepted_request(
    standing_processes: Standing, first: str
) -> None:
    """Two edges and two replicas, each replaced under load."""
    for at in (0, 1):
        standing_processes.replica(at)
    old = [await standing_processes.edge(), await standing_processes.edge()]
    serving = list(old)
    balancer = Balancer(serving)
    balancer.start(12)
    await balancer.more()

    async def edges() -> None:
        for at, edge in enumerate(old):
            serving[at] = await standing_processes.edge()
            edge.process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(edge.process.wait(), 60) == 0
            await balancer.more()

    async def replicas() -> None:
        for at in (0, 1):
            process = standing_processes.replicas[at]
            process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(process.wait, 60) == 0
            standing_processes.replica(at)
            await asyncio.gather(*(edge.has_both() for edge in serving))
            await balancer.more()

    for part in (edges, replicas) if first == "edges" else (replicas, edges):
        await part()
    await balancer.stop()
    assert balancer.lost == []
    assert balancer.answered > 250
