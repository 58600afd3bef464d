"""Signing in and out."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import httpx2
import pytest

from router.extensions.console.pages import inside
from tests.extensions.console.conftest import Roled, audited, csrf, post
from tests.server.http_helpers import StartWeb, with_certificates


async def test_a_browser_keeps_a_session_and_not_the_token(roled: Roled) -> None:
    site = await roled()
    answer = await post(site.nobody, "/console/sign-in", token=site.tokens.olga, next="/console/adapters")
    assert (answer.status_code, answer.headers["location"]) == (303, "/console/adapters")
    cookie = answer.headers["set-cookie"]
    assert "; Path=/console; HttpOnly; SameSite=Strict" in cookie
    assert "Secure" not in cookie  # this server has no TLS
    assert len(next(iter(site.nobody.cookies.values()))) == 43
    assert site.tokens.olga not in cookie
    page = await site.nobody.get("/console/adapters")
    assert page.status_code == 200
    assert "olga" in page.text
    assert site.tokens.olga not in page.text


async def test_signing_out_ends_the_session_and_not_the_cookie_alone(roled: Roled) -> None:
    site = await roled()
    kept = dict(site.olga.cookies)
    assert (await post(site.olga, "/console/sign-out")).status_code == 303
    assert (await site.olga.get("/console")).status_code == 401
    site.nobody.cookies.update(kept)  # a copy of the cookie
    assert (await site.nobody.get("/console")).status_code == 401


async def test_signing_in_again_ends_the_session_before(roled: Roled) -> None:
    site = await roled()
    before = dict(site.olga.cookies)
    await post(site.olga, "/console/sign-in", token=site.tokens.anna)
    assert "anna" in (await site.olga.get("/console")).text
    site.nobody.cookies.update(before)
    assert (await site.nobody.get("/console")).status_code == 401


async def test_the_token_itself_is_no_cookie(roled: Roled) -> None:
    site = await roled()
    (name,) = site.olga.cookies
    site.nobody.cookies.set(name, site.tokens.olga)
    answer = await site.nobody.get("/console")
    assert answer.status_code == 401
    assert "Max-Age=0" in answer.headers["set-cookie"]


async def test_a_client_that_is_taken_out_is_out_of_its_session(roled: Roled) -> None:
    site = await roled()
    assert (await site.olga.get("/console")).status_code == 200
    site.tokens.path.write_text("# none\n")
    site.server.access.look()
    assert (await site.olga.get("/console")).status_code == 401


@pytest.mark.parametrize(
    "headers",
    [
        {"x-forwarded-proto": "https"},
        {"x-forwarded-proto": "HTTPS, http"},
        {"origin": "https://router.example", "host": "router.example"},
    ],
)
async def test_behind_a_proxy_with_tls_the_cookie_is_secure(roled: Roled, headers: dict[str, str]) -> None:
    site = await roled(http_hosts=("router.example",))
    fields = {"csrf": await csrf(site.nobody), "token": site.tokens.olga}
    answer = await site.nobody.post("/console/sign-in", data=fields, headers=headers)
    assert answer.status_code == 303
    assert answer.headers["set-cookie"].endswith("; HttpOnly; SameSite=Strict; Secure")


async def test_a_token_of_nobody_begins_no_session(roled: Roled) -> None:
    site = await roled()
    answer = await post(site.nobody, "/console/sign-in", token="lrk_nobody_x", next="")
    assert answer.status_code == 401
    assert "not valid here" in answer.text
    assert not site.nobody.cookies
    assert [line["reason"] for line in await audited(site)] == ["TOKEN_INVALID"]


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


async def test_a_certificate_needs_no_sign_in_and_an_unknown_cookie_changes_nothing(
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
        assert (await post(browser, "/console/sign-in", token="x")).status_code == 401
        browser.cookies.set(f"lora_router_{server.http_address.rpartition(':')[2]}", "of no session")
        assert (await browser.get("/console")).status_code == 200  # the certificate counts


async def test_what_is_not_there_is_told_as_a_page(opened: SimpleNamespace) -> None:
    answer = await opened.http.get("/console/<b>nothing</b>")
    assert (answer.status_code, answer.headers["content-type"]) == (404, "text/html; charset=utf-8")
    assert "<b>nothing" not in answer.text
    assert "not found" in answer.text
    assert (await opened.http.get("/console/")).status_code == 200


async def test_an_open_server_asks_for_no_token(opened: SimpleNamespace) -> None:
    page = await opened.http.get("/console")
    assert page.status_code == 200
    assert "Sign" not in page.text
    assert await csrf(opened.http, "/console")
