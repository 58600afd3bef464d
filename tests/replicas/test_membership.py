from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from router.replicas.link import Link, Security
from router.replicas.membership import FixedMembership, FoundMembership


async def test_those_that_are_fixed_stay_those() -> None:
    membership = FixedMembership([Link(name, "", Security()) for name in "01"])
    assert await membership.names() == await membership.names() == ("0", "1")


async def test_a_name_stands_for_all_its_addresses_and_for_the_last_ones_where_it_cannot_be_looked_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found: list[Any] = [["10.0.0.2", "10.0.0.1", "10.0.0.1"], OSError("no answer"), ["10.0.0.3"]]

    async def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        assert host == "replicas"
        addresses = found.pop(0)
        if isinstance(addresses, OSError):
            raise addresses
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port)) for ip in addresses]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    membership = FoundMembership(["dns:///replicas:7", "10.0.0.9:8"], Security())
    both = ("10.0.0.1:7", "10.0.0.2:7", "10.0.0.9:8")
    assert [await membership.names() for _ in "123"] == [both, both, ("10.0.0.3:7", "10.0.0.9:8")]
    link = membership.link("10.0.0.3:7")
    assert link.address == "10.0.0.3:7"
    assert ("grpc.ssl_target_name_override", "replicas") in link._options
