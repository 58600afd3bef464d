"""A foreign name that points here gets nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from router.access.hosts import Hosts, is_local, is_loopback, is_safe
from tests.server.http_helpers import Http, StartWeb


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
    assert Hosts(listen, tls, hosts).know(host) == good


async def test_a_foreign_name_reaches_no_api_of_an_open_server(start_web: StartWeb, http: Http) -> None:
    client = http(await start_web(http_hosts=("router.lan",)))
    for host, status in (("evil.example:8000", 403), ("localhost", 200), ("router.lan:80", 200)):
        answer = await client.get("/v1/models", headers={"host": host})
        assert answer.status_code == status
    chat = {"model": "medical", "messages": [{"role": "user", "content": "hi"}]}
    refused = await client.post("/v1/chat/completions", json=chat, headers={"host": "evil.example"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "not_this_page")
    assert "http_hosts" in refused.json()["error"]["message"]


async def test_who_shows_a_token_may_use_any_name(start_web: StartWeb, http: Http, tmp_path: Path) -> None:
    clients = tmp_path / "clients.toml"
    clients.write_text("")
    client = http(await start_web(clients=clients))
    answer = await client.get("/v1/models", headers={"host": "llm.example.com"})
    assert answer.status_code == 401


# -- Addresses of this machine, and URLs that keys may come from.


@pytest.mark.parametrize(
    ("host", "here"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("10.0.0.1", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example", False),
        ("", False),
    ],
)
def test_loopback(host: str, here: bool) -> None:
    assert is_loopback(host) is here
    bracketed = f"[{host}]" if ":" in host else host
    assert is_local(f"http://{bracketed}:80/x") is here
    assert is_safe(f"http://{bracketed}:80/x") is here


@pytest.mark.parametrize(
    ("url", "safe"),
    [
        ("https://login.example/keys", True),
        ("https://login.example:8443", True),
        ("http://login.example/keys", False),
        ("ftp://127.0.0.1/keys", False),
        ("file:///etc/passwd", False),
        ("https://", False),
        ("login.example", False),
        ("https://me:secret@login.example", False),
        ("https://login.example:x", False),
        ("https://[::1", False),
        ("https://login.example/\n", False),
        ("https://lögin.example", False),
    ],
)
def test_urls(url: str, safe: bool) -> None:
    assert is_safe(url) is safe
