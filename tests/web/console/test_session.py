"""Signing in and out."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import httpx2
import pytest

from router.web.console.session import inside
from tests.web.conftest import StartWeb, with_certificates
from tests.web.console.conftest import Roled, csrf, post


async def test_a_token_is_kept_where_no_script_reads_it(roled: Roled) -> None:
    site = await roled()
    answer = await post(site.nobody, "/console/sign-in", token=site.tokens.olga, next="/console/adapters")
    assert (answer.status_code, answer.headers["location"]) == (303, "/console/adapters")
    cookie = answer.headers["set-cookie"]
    assert "; Path=/console; HttpOnly; SameSite=Strict" in cookie
    assert "Secure" not in cookie  # this server has no TLS
    page = await site.nobody.get("/console/adapters")
    assert page.status_code == 200
    assert "olga" in page.text
    assert site.tokens.olga not in page.text
    away = await post(site.nobody, "/console/sign-out")
    assert away.status_code == 303
    assert (await site.nobody.get("/console")).status_code == 401


async def test_a_token_of_nobody_is_refused_and_forgotten(roled: Roled) -> None:
    site = await roled()
    await post(site.nobody, "/console/sign-in", token="lrk_nobody_x", next="")
    answer = await site.nobody.get("/console")
    assert answer.status_code == 401
    assert "not valid here" in answer.text
    assert "Max-Age=0" in answer.headers["set-cookie"]
    assert not site.nobody.cookies
    assert [entry.act.reason for entry in site.server.recent] == ["TOKEN_INVALID"]


async def test_what_is_no_token_is_not_kept(roled: Roled) -> None:
    site = await roled()
    for token in ("", " ", "a\nb", "ä", "x" * 9000):
        answer = await post(site.nobody, "/console/sign-in", token=token)
        assert answer.status_code == 400
        assert "set-cookie" not in answer.headers


@pytest.mark.parametrize(
    "path",
    [
        "https://evil.example",
        "//evil.example",
        "/\\evil.example",
        "/console/..//x",
        "/console/sign-in",
        "/v1",
    ],
)
def test_signing_in_leads_nowhere_else(path: str) -> None:
    assert inside(path) == "/console"


async def test_the_header_counts_as_it_does_elsewhere(roled: Roled) -> None:
    site = await roled()
    headers = {"authorization": f"Bearer {site.tokens.olga}"}
    assert (await site.nobody.get("/console", headers=headers)).status_code == 200


async def test_a_certificate_needs_no_sign_in_and_cookies_are_for_tls_alone(
    start_web: StartWeb, tmp_path: Path
) -> None:
    server, team, _ = await with_certificates(start_web, tmp_path, "observe", "*")
    async with httpx2.AsyncClient(verify=team, base_url=f"https://{server.http_address}") as browser:
        page = await browser.get("/console")
        assert page.status_code == 200
        assert "team" in page.text
        assert "Sign out" not in page.text
        named = await browser.get("/console", headers={"host": "router.lan"})  # the certificate has told
        assert named.status_code == 200
        answer = await post(browser, "/console/sign-in", token="x")
        assert "; Secure" in answer.headers["set-cookie"]
        statuses = [(await browser.get("/console")).status_code for _ in range(2)]
        assert statuses == [401, 200]  # a token decides, and is forgotten where it is nobody's


async def test_what_is_not_there_is_told_as_a_page(opened: SimpleNamespace) -> None:
    answer = await opened.http.get("/console/<b>nothing</b>")
    assert (answer.status_code, answer.headers["content-type"]) == (404, "text/html; charset=utf-8")
    assert "<b>nothing" not in answer.text
    assert "not found" in answer.text
    assert (await opened.http.get("/console/")).headers["location"] == "/console"


async def test_an_open_server_asks_for_no_token(opened: SimpleNamespace) -> None:
    page = await opened.http.get("/console")
    assert page.status_code == 200
    assert "Sign" not in page.text
    assert await csrf(opened.http, "/console")
