"""What the HTTP address answers by itself, and to pages of other origins."""

from __future__ import annotations

import socket

import pytest

from router import __version__
from router.config import Settings
from router.errors import ConfigError
from router.server import listen
from tests.conftest import Start
from tests.server.http_helpers import Http, StartWeb

ORIGIN, OTHER = "http://app.example:3000", "http://evil.example"
ALLOWED = "access-control-allow-origin"


async def test_a_browser_is_sent_to_the_console_and_a_program_gets_json(
    start_web: StartWeb, http: Http
) -> None:
    server = await start_web()
    client = http(server)
    sent = await client.get("/", headers={"accept": "text/html,*/*;q=0.8"}, follow_redirects=False)
    assert (sent.status_code, sent.headers["location"]) == (303, "/console")
    answer = (await client.get("/")).json()
    assert (answer["name"], answer["status"]) == ("lora-router", "ok")
    assert set(answer["links"]) == {"console", "models", "health", "version"}
    for path in answer["links"].values():
        assert (await client.get(path)).status_code == 200, path


async def test_health_and_version(start_web: StartWeb, http: Http) -> None:
    server = await start_web()
    assert (await http(server).get("/version")).json() == {"version": __version__}
    assert (await http(server).get("/health")).json() == {"status": "ok"}
    server.health.drain()
    answer = await http(server).get("/health")
    assert (answer.status_code, answer.json()) == (503, {"status": "draining"})


async def test_known_origins_may_read_answers_and_no_other(start_web: StartWeb, http: Http) -> None:
    client = http(await start_web(http_origins=(ORIGIN,)))
    known = await client.get("/v1/models", headers={"origin": ORIGIN})
    assert known.headers[ALLOWED] == ORIGIN
    assert "x-request-id" in known.headers["access-control-expose-headers"]
    refused = await client.post("/v1/chat/completions", json={}, headers={"origin": ORIGIN})
    assert (refused.status_code, refused.headers[ALLOWED]) == (400, ORIGIN)
    assert ALLOWED not in (await client.get("/v1/models", headers={"origin": OTHER})).headers
    assert ALLOWED not in (await client.get("/console", headers={"origin": ORIGIN})).headers


async def test_a_browser_asks_before_it_sends_a_body(start_web: StartWeb, http: Http) -> None:
    client = http(await start_web(http_origins=(ORIGIN,)))
    asks = {
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,x-stainless-lang",
    }
    known, other = [
        await client.options("/v1/chat/completions", headers=asks | {"origin": origin})
        for origin in (ORIGIN, OTHER)
    ]
    assert known.status_code == 200
    assert "x-stainless-lang" in known.headers["access-control-allow-headers"]
    assert other.status_code == 400
    assert ALLOWED not in other.headers


@pytest.mark.parametrize("origin", ["app.example", "http://app.example/path", "null", "*"])
def test_an_origin_that_is_none_is_refused(origin: str) -> None:
    with pytest.raises(ValueError, match=r"http_origins|origin"):
        Settings(http_origins=(origin,))


async def test_http_is_left_out_where_its_default_address_is_in_use(
    start_server: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = "127.0.0.1:{1}".format(*other.getsockname())
        with pytest.raises(ConfigError, match="--set http_listen=HOST:PORT"):
            await start_server(http_listen=taken)
        monkeypatch.setattr("router.server.app.has_default_http", lambda settings: True)
        server = await start_server(http_listen=taken)
    assert server.http_address == ""
    assert f"{taken} is in use" in server.http_problem


def test_the_default_is_an_address_on_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LORA_ROUTER_HTTP_LISTEN")
    assert listen.has_default_http(Settings())
    assert Settings().http_listen == "127.0.0.1:8000"
    assert not listen.has_default_http(Settings(http_listen="127.0.0.1:8000"))
