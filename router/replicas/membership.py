"""Which replicas an edge has: those that it starts, those that it finds, or those that it was given.

The edge reports what it sees, and follows the fleet plan that it gets. It starts a replica that is new in the
plan, and drains one that is on the way out. One that is draining is ended when the edge no longer names it.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from router.errors import ConfigError, FailedPrecondition, FieldViolation, InvalidRequest
from router.replicas.link import GrpcLink, Link, Security

log = logging.getLogger(__name__)

MOST = 1024  # replicas of a fleet
DNS = "dns:///"


class Step(StrEnum):
    """How far a replacement has come."""

    QUEUED = "queued"
    STARTING = "starting"  # the new one is not up yet
    DRAINING = "draining"  # the new one is up, the old one ends what it has
    DONE = "done"
    FAILED = "failed"  # the old one stays


@dataclass(frozen=True, slots=True)
class Member:
    """A replica by its name, which no other ever gets. `successor` gets the adapters of one that drains."""

    name: str
    draining: bool = False  # it gets nothing new, and is ended when nothing runs there
    successor: str = ""


@dataclass(frozen=True, slots=True)
class MemberLoad:
    """How the edge finds a replica: jobs of this edge alone. `problem`: why it is not up, if that is known;
    `failures`: starts that failed since it last was.
    """

    up: bool
    running: int = 0
    waiting: int = 0
    problem: str = ""
    failures: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """What an edge sees, every second. `loads` names the replicas that it still has something to do with;
    `waiting` are jobs that no replica has yet, `rows` what one replica runs at a time.
    """

    loads: Mapping[str, MemberLoad]
    waiting: int
    rows: int


@dataclass(frozen=True, slots=True)
class Replacement:
    """One member in the place of another."""

    old: str
    new: str = ""
    step: Step = Step.QUEUED
    problem: str = ""  # of one that failed

    @property
    def over(self) -> bool:
        """Nothing more comes of it."""
        return self.step in (Step.DONE, Step.FAILED)


@dataclass(frozen=True, slots=True)
class FleetPlan:
    """The fleet as it is to be."""

    members: tuple[Member, ...]
    least: int
    most: int
    replacements: tuple[Replacement, ...] = ()  # the latest of each member


class Membership(Protocol):
    """Where it is decided; all raise Unavailable where that cannot be reached."""

    @property
    def found(self) -> bool:
        """Whether others start the replicas. Then one that is up is enough to begin."""
        ...

    async def report(self, report: Report) -> FleetPlan:
        """Say how it is here, every second and after changes; returns what is to be followed."""
        ...

    async def resize(self, least: int, most: int) -> FleetPlan:
        """Other bounds from now on. Raises InvalidRequest."""
        ...

    async def replace(self, names: Sequence[str]) -> FleetPlan:
        """One after the other, each by a new one; with no names all. Raises NotFound, and replaces nobody."""
        ...


class FixedMembership:
    """Implements `Membership` over replicas that are and stay those."""

    found = False

    def __init__(self, names: Sequence[str]) -> None:
        self._fleet_plan = FleetPlan(tuple(map(Member, names)), len(names), len(names))

    async def report(self, report: Report) -> FleetPlan:
        """Always the same."""
        return self._fleet_plan

    async def resize(self, least: int, most: int) -> FleetPlan:
        """Raises FailedPrecondition."""
        raise FailedPrecondition("these replicas are fixed: start the server again with another number")

    async def replace(self, names: Sequence[str]) -> FleetPlan:
        """Raises FailedPrecondition."""
        raise FailedPrecondition("these replicas are fixed: drain them (`lora-router replicas drain`)")


class FoundMembership:
    """Implements `Membership` over replicas that somebody else starts: systemd, Kubernetes, a person.

    They are found by their addresses: HOST:PORT, or dns:///HOST:PORT for all addresses of a name,
    which is looked up with each report.
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
        return GrpcLink(name, name, self._security, tls_name=self._tls_name or self._hosts.get(name, ""))

    async def report(self, report: Report) -> FleetPlan:
        """Those that are found now."""
        names: dict[str, None] = {}
        for address in self._addresses:
            names |= dict.fromkeys(await self._resolved(address))
        return FleetPlan(tuple(map(Member, names)), 1, MOST)

    async def resize(self, least: int, most: int) -> FleetPlan:
        """Raises FailedPrecondition."""
        raise FailedPrecondition(
            "these replicas are found by their addresses: what starts them says how many"
        )

    async def replace(self, names: Sequence[str]) -> FleetPlan:
        """Raises FailedPrecondition."""
        raise FailedPrecondition(
            "these replicas are found by their addresses: drain them (`lora-router replicas drain`), and "
            "what started them starts new ones"
        )

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


def check_bounds(least: int, most: int) -> tuple[int, int]:
    """Both. Raises InvalidRequest naming what is wrong."""
    found = []
    if not 1 <= least <= MOST:
        found.append(FieldViolation("least", f"must be from 1 to {MOST}, not {least}"))
    if not least <= most <= MOST:
        found.append(FieldViolation("most", f"must be from least ({least}) to {MOST}, not {most}"))
    if found:
        raise InvalidRequest(found)
    return least, most
