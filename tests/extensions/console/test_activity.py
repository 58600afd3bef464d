"""The audit, as one looks through it."""

from __future__ import annotations

import re
from types import SimpleNamespace

from router.access.audit import AuditedCall
from tests.extensions.console.conftest import Roled, post

LOAD = "/console/adapters/load"


async def test_the_newest_first_and_what_was_asked_for(roled: Roled) -> None:
    site = await roled()
    await post(site.anna, LOAD, name="adapters/medical")
    await post(site.olga, LOAD, name="adapters/legal")
    await site.nobody.get("/console")
    page = (await site.anna.get("/console/activity")).text
    rows = re.findall(r"<tr>.*?</tr>", page, re.DOTALL)[1:]
    assert ["TOKEN_MISSING" in rows[0], "olga" in rows[1], "anna" in rows[2]] == [True] * 3
    for query, expected in (
        ("who=anna", 1),
        ("who=ANNA&what=unload", 0),
        ("what=medical", 1),
        ("what=loadadapter", 2),
        ("kind=refusals", 2),
        ("kind=acts", 1),
        ("kind=failed", 0),
        ("kind=nonsense&before=x", 3),
    ):
        found = (await site.anna.get(f"/console/activity?{query}")).text
        assert len(re.findall(r'<td class="nowrap num"', found)) == expected, query


async def test_looking_is_no_act(roled: Roled) -> None:
    site = await roled()
    await site.anna.get("/console/activity")
    assert list(site.server.recent) == []
    assert (await site.olga.get("/console/activity")).status_code == 403
    assert [line.act.method for line in site.server.recent] == ["GET /console/activity"]


async def test_who_may_not_know_of_all_sees_its_own_acts(roled: Roled) -> None:
    site = await roled(adapters=["legal"])
    await post(site.anna, LOAD, name="adapters/legal")
    await post(site.olga, LOAD, name="adapters/legal")
    assert len(list(site.server.recent)) == 2
    page = (await site.anna.get("/console/activity")).text
    assert "LoadAdapter" in page
    assert "olga" not in page
    history = (await site.anna.get("/console/adapters/legal/2.0.0")).text
    assert "by anna" in history
    assert "by olga" not in history


async def test_there_are_pages_and_texts_stay_texts(opened: SimpleNamespace) -> None:
    recent = opened.server.recent
    for number in range(150):
        recent.acted(AuditedCall("r", "<b>x</b>", "127.0.0.1", "m/Load", f"adapters/<i>{number}</i>", "OK"))
    first = (await opened.http.get("/console/activity")).text
    assert "<b>x" not in first
    assert "&lt;i&gt;149" in first
    older = re.search(r'href="(/console/activity\?[^"]+)">Older', first)
    assert older
    second = (await opened.http.get(older[1].replace("&amp;", "&"))).text
    assert "&lt;i&gt;0&lt;" in second
    assert "&lt;i&gt;149" not in second
    assert "Older" not in second
