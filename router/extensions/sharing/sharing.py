"""What a server shares with other edges, from its settings."""

from __future__ import annotations

import logging
import os
import secrets
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from router.cli.clients import write
from router.config import Settings
from router.errors import ConfigError, SharedDown
from router.shared.clients import KEY, ClientsFile
from router.shared.state import SharedState

if TYPE_CHECKING:
    from router.server.app import ServerApp
    from router.shared.postgres import Beat, PostgresTable

log = logging.getLogger(__name__)
SYNCED = "clients.synced.json"


class Sharing:
    """An edge among others: started before the registry, closed after it. `state` is the registry's folder.

    Raises ConfigError for a database that cannot be one, and for a clients file that is not here where it
    cannot be had from the others.
    """

    def __init__(self, settings: Settings, state: Path, table: PostgresTable | None = None) -> None:
        url = settings.database
        if table is None:
            from router.shared.postgres import PostgresTable

            table = PostgresTable(url, edge_name())
        self.state = SharedState(table)
        self._clients: ClientsFile | None = None
        if settings.clients is not None:
            if not settings.clients.exists():
                _fetch_clients(url, settings.clients)
            self._clients = ClientsFile(settings.clients, self.state, state / SYNCED, write)

    def serve(self, server: ServerApp) -> None:
        """Chosen defaults and what clients use count at all edges, and metrics tell of these."""
        quotas = server.admission.quotas

        def others(beats: Sequence[Beat]) -> None:
            quotas.used_elsewhere({beat.edge: beat.used for beat in beats})

        self.state.used, self.state.others = quotas.used, others
        server.registry.share(self.state)
        server.metrics.registry.register(EdgesCollector(self.state))

    async def start(self) -> None:
        """Know what is shared; see `SharedState.start`."""
        await self.state.start()
        if self._clients is not None:
            await self._clients.start()

    async def close(self) -> None:
        """Leave the others."""
        if self._clients is not None:
            await self._clients.close()
        await self.state.close()

    @property
    def flaws(self) -> Sequence[str]:
        """What is wrong, for a person."""
        return [*self.state.flaws, *(self._clients.flaws if self._clients is not None else [])]


class EdgesCollector(Collector):
    """Whether the others can be reached, and how many there are with this one, for a scraper."""

    def __init__(self, state: SharedState) -> None:
        self._state = state

    def collect(self) -> Iterator[Metric]:
        """As of the last look."""
        yield GaugeMetricFamily(
            "lora_router_shared_state_up",
            "1 while the database of what edges share answers.",
            float(not self._state.problem),
        )
        yield GaugeMetricFamily(
            "lora_router_edges",
            "Edges that share their state, as seen last, this one too.",
            self._state.edges,
        )


def edge_name() -> str:
    """Of this process, for people and for others that count: no other one ever has it."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"


def _fetch_clients(url: str, path: Path) -> None:
    from router.shared.postgres import fetch

    try:
        found = fetch(url, KEY)
    except SharedDown as error:
        raise ConfigError(f"{path}: no such file, and other edges cannot be asked: {error.message}") from None
    if found is not None:  # else its reader says that it is not there
        write(path, str(found["text"]))
        log.info("the clients file is as the other edges have it: %s", path)
