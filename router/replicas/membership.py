"""Which replicas an edge has: a number that it starts, or those that it finds by their addresses."""

from __future__ import annotations

import asyncio
import logging
import socket
from abc import ABC, abstractmethod
from collections.abc import Sequence

from router.errors import ConfigError
from router.replicas.link import Link, Security

log = logging.getLogger(__name__)

DNS = "dns:///"


class Membership(ABC):
    """Says which replicas an edge has. Called on one event loop at a time."""

    found = False  # whether others start the replicas; then one that is up is enough to begin

    @abstractmethod
    def link(self, name: str) -> Link:
        """The way to a replica."""

    @abstractmethod
    async def names(self) -> tuple[str, ...]:
        """Those that there are now; asked every second. The edge lets go one that is no longer named."""


class FixedMembership(Membership):
    """Replicas that are and stay those."""

    def __init__(self, links: Sequence[Link]) -> None:
        """Raises ConfigError for none."""
        if not links:
            raise ConfigError("a fleet needs a replica: set replicas to 1 or more")
        self._links = {link.name: link for link in links}

    def link(self, name: str) -> Link:
        """The way to a replica."""
        return self._links[name]

    async def names(self) -> tuple[str, ...]:
        """Always the same."""
        return tuple(self._links)


class FoundMembership(Membership):
    """Replicas that others start: systemd, Kubernetes, a person.

    They are found by their addresses: HOST:PORT, or dns:///HOST:PORT for all addresses of a name,
    which is looked up every second.
    """

    found = True

    def __init__(self, addresses: Sequence[str], security: Security, tls_name: str = "") -> None:
        """`tls_name` is the name in all certificates. Raises ConfigError for what is no address."""
        for address in addresses:
            host, _, port = address.removeprefix(DNS).rpartition(":")
            if not host or not port.isdecimal():
                raise ConfigError(
                    f"a replica's address is HOST:PORT or dns:///HOST:PORT, such as 10.0.0.7:50060, not "
                    f"{address!r}"
                )
        self._addresses, self._security = tuple(dict.fromkeys(addresses)), security
        self._last: dict[str, tuple[str, ...]] = {}  # what a name stood for, while it cannot be looked up
        self._tls_name = tls_name
        self._hosts: dict[str, str] = {}  # the name that an address was found under

    def link(self, name: str) -> Link:
        """The way to the replica at that address."""
        return Link(name, name, self._security, tls_name=self._tls_name or self._hosts.get(name, ""))

    async def names(self) -> tuple[str, ...]:
        """Those that are found now."""
        names: dict[str, None] = {}
        for address in self._addresses:
            names |= dict.fromkeys(await self._resolved(address))
        return tuple(names)

    async def _resolved(self, address: str) -> tuple[str, ...]:
        if not address.startswith(DNS):
            return (address,)
        host, _, port = address.removeprefix(DNS).rpartition(":")
        try:
            found = await asyncio.get_running_loop().getaddrinfo(
                host.strip("[]"), int(port), type=socket.SOCK_STREAM
            )
        except OSError as error:
            log.warning("replicas of %s cannot be looked up: %s", host, error)
            return self._last.get(address, ())
        pairs = sorted({(str(info[4][0]), info[4][1]) for info in found})
        self._last[address] = tuple(f"[{ip}]:{at!s}" if ":" in ip else f"{ip}:{at!s}" for ip, at in pairs)
        self._hosts |= dict.fromkeys(self._last[address], host)
        return self._last[address]
