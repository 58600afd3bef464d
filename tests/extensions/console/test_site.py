"""Every page and action is a call of the chain: roles, errors, headers, and what other pages cannot do."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest

from router.access.clients import Role
from router.extensions.console.pages import ENTRIES
from router.extensions.console.site import ROOT, Page
from router.server.policy import Policy
from tests.extensions.console.conftest import Roled, audited, csrf, post
from tests.security.helpers import ROWS
from tests.server.http_helpers import Http, StartWeb

PAGES = sorted({ROOT + entry.path for entry in ENTRIES if isinstance(entry, Page) and "{" not in entry.path})
FORMS = sorted({ROOT + entry.path for entry in ENTRIES if not isinstance(entry, Page)})
LOAD = "/console/adapters/load"
MEDICAL = "adapters/medical/versions/1.0.0"
LOADED = "router.v1.AdapterService/LoadAdapter"


def test_no_two_entries_are_at_one_place() -> None:
    places = [(entry.path, entry.verb) for entry in ENTRIES]
    assert len(places) == len(set(places))


async def test_pages_are_shown_and_let_nothing_foreign_in(opened: SimpleNamespace) -> None:
    for path in PAGES:
        answer = await opened.http.get(path)
        assert answer.status_code == 200, (path, answer.text)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert "x-request-id" in answer.headers
        own = str(opened.http.base_url).rstrip("/")  # of lines to copy
        text = answer.text.lower().replace("http://www.w3.org", "").replace(own, "")
        for forbidden in ("<style", " style=", " onclick=", "javascript:", "<script>", "http://", "https://"):
            assert forbidden not in text, (path, forbidden)


async def test_who_has_not_signed_in_gets_the_form(roled: Roled) -> None:
    site = await roled()
    for path in PAGES:
        answer = await site.nobody.get(path)
        assert answer.status_code == (200 if path == "/console/sign-in" else 401)
        assert 'name="token"' in answer.text
        assert "<nav" not in answer.text


async def test_roles_are_those_of_the_methods(roled: Roled) -> None:
    site = await roled()
    for entry in ENTRIES:
        if not isinstance(entry, Page) or "{" in entry.path:
            continue
        role = entry.method.role if isinstance(entry.method, Policy) else ROWS[entry.method].role
        for name in ("anna", "olga", "ivan"):
            answer = await getattr(site, name).get(ROOT + entry.path)
            may = name == "anna" or role is Role.OPEN or role.value == CAN[name]
            assert answer.status_code == (200 if may else 403), (entry.path, name, answer.text)
            if not may:
                assert f"needs the role {role.value}" in answer.text


CAN = {"olga": "observe", "ivan": "infer"}


async def test_an_act_needs_the_role_of_its_method_and_is_in_the_log(
    roled: Roled, caplog: pytest.LogCaptureFixture
) -> None:
    site = await roled()
    refused = await post(site.olga, LOAD, name=MEDICAL)
    assert refused.status_code == 403
    assert "LoadAdapter needs the role admin" in refused.text
    caplog.set_level(logging.INFO, "router.server.access")
    done = await post(site.anna, LOAD, name=MEDICAL)
    assert done.status_code == 303, done.text
    lines = [record.fields for record in caplog.records if record.name == "router.server.access"]
    said = [(line["method"], line["route"], line["status"], line["client"], line["code"]) for line in lines]
    assert said == [("POST", LOAD, 303, "anna", "OK")]
    first, second = await audited(site)
    assert (first["client"], first["method"], first["code"]) == ("olga", LOADED, "PERMISSION_DENIED")
    assert (second["client"], second["method"], second["code"]) == ("anna", LOADED, "OK")
    assert second["resource"] == MEDICAL


FOREIGN = (  # headers, and whether the form has the secret
    ({"origin": "http://evil.example"}, True),
    ({"origin": "null"}, True),
    ({"sec-fetch-site": "cross-site"}, True),
    ({"sec-fetch-site": "same-site"}, True),
    ({}, False),
)


async def test_forms_of_other_pages_are_refused(roled: Roled) -> None:
    site = await roled()
    good = await csrf(site.anna)
    for path in FORMS:
        for headers, knows in FOREIGN:
            fields = {"csrf": good if knows else "0" * 64, "name": MEDICAL, "token": "x"}
            answer = await site.anna.post(path, data=fields, headers=headers)
            assert answer.status_code == 403, (path, headers)
            assert "NOT_THIS_PAGE" in answer.text
    assert {line["code"] for line in await audited(site)} == {"PERMISSION_DENIED"}


async def test_the_secret_is_each_clients_own(roled: Roled) -> None:
    site = await roled()
    assert await csrf(site.anna, "/console") != await csrf(site.olga, "/console")
    stolen = await csrf(site.olga, "/console")
    answer = await site.anna.post(LOAD, data={"csrf": stolen, "name": MEDICAL})
    assert answer.status_code == 403


async def test_a_form_of_this_page_goes_through(roled: Roled) -> None:
    site = await roled()
    host = site.server.http_address
    headers = {"origin": f"http://{host}", "sec-fetch-site": "same-origin"}
    fields = {"csrf": await csrf(site.anna), "name": MEDICAL}
    assert (await site.anna.post(LOAD, data=fields, headers=headers)).status_code == 303


async def test_a_form_comes_as_a_form(opened: SimpleNamespace) -> None:
    content = f"csrf={await csrf(opened.http)}&name={MEDICAL}".encode()
    for kind in ("application/json", "text/plain", "multipart/form-data; boundary=x"):
        answer = await opened.http.post(LOAD, content=content, headers={"content-type": kind})
        assert answer.status_code == 415
        assert "content-type" in answer.text


async def test_bodies_that_are_no_form(opened: SimpleNamespace) -> None:
    headers = {"content-type": "application/x-www-form-urlencoded"}
    for content in (b"a&&&=%", b"&" * 500, b"\xff\xfe=1", b"x" * 70_000):
        answer = await opened.http.post(LOAD, content=content, headers=headers)
        assert answer.status_code in (400, 403, 413)
        assert answer.headers["content-type"].startswith("text/html")


async def test_a_fragment_that_is_refused_leads_where_it_can_be_read(roled: Roled) -> None:
    site = await roled()
    htmx = {"hx-request": "true"}
    away = await site.nobody.get("/console/overview/live", headers=htmx)
    assert (away.status_code, away.headers["hx-redirect"]) == (401, "/console")
    refused = await site.ivan.get("/console/overview/live", headers=htmx)
    assert (refused.status_code, refused.headers["hx-retarget"]) == (403, "#notice")
    assert "<html" not in refused.text


async def test_without_the_setting_there_is_none(start_web: StartWeb, http: Http) -> None:
    server = await start_web(**{"console.enabled": False})
    answer = await http(server).get("/console")
    assert answer.status_code == 404
    assert "/console" not in server.paths
