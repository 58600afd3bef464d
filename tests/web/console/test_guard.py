"""Hosts: a foreign name that points here gets nothing."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from router.web.console.guard import Elsewhere, Guard


@pytest.mark.parametrize(
    ("listen", "tls", "hosts", "host", "good"),
    [
        ("127.0.0.1:8000", False, (), "127.0.0.1:8000", True),
        ("127.0.0.1:8000", False, (), "localhost:8000", True),
        ("127.0.0.1:8000", False, (), "[::1]:8000", True),
        ("127.0.0.1:8000", False, (), "evil.example:8000", False),
        ("127.0.0.1:8000", False, (), "127.0.0.1.evil.example", False),
        ("127.0.0.1:8000", False, (), "localhost.evil.example", False),
        ("127.0.0.1:8000", False, (), "", False),
        ("127.0.0.1:8000", False, (), "[", False),
        ("127.0.0.1:8000", False, (), "10.0.0.7", False),
        ("127.0.0.1:8000", False, ("router.lan",), "router.lan", True),
        ("127.0.0.1:8000", False, ("Router.LAN",), "ROUTER.lan:80", True),
        ("0.0.0.0:8000", False, (), "10.0.0.7:8000", True),
        ("0.0.0.0:8000", False, (), "router.lan:8000", False),
        ("0.0.0.0:8000", True, (), "router.lan:8000", True),
        ("router.lan:8000", False, (), "router.lan:8000", True),
    ],
)
def test_hosts(listen: str, tls: bool, hosts: tuple[str, ...], host: str, good: bool) -> None:
    guard = Guard(listen, tls, hosts)
    if good:
        guard.check_host(host)
    else:
        with pytest.raises(Elsewhere, match="console_hosts"):
            guard.check_host(host)


async def test_a_page_under_a_foreign_name_gets_no_page(opened: SimpleNamespace) -> None:
    answer = await opened.http.get("/console/adapters", headers={"host": "evil.example"})
    assert answer.status_code == 403
    assert "medical" not in answer.text
