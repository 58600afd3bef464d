"""What may be done about adapters: asked first, done by the service, refused without the role."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from router.types import AdapterRef, AdapterState
from tests.extensions.console.conftest import Roled, audited, post
from tests.fakes import adapter

OLD, NEW = AdapterRef("medical", "1.0.0"), AdapterRef("medical", "1.1.0")
PAGE = "/console/adapters/medical/1.0.0"


async def act(browser: object, path: str, ref: AdapterRef = OLD, **fields: str) -> int:
    answer = await post(browser, f"/console/adapters/{path}", name=ref.resource, **fields)  # type: ignore[arg-type]
    if answer.status_code == 303:
        assert answer.headers["location"] == f"/console/adapters/{ref.name}/{ref.version}?did={path}"
        assert 'class="notice ok"' in (await browser.get(answer.headers["location"])).text  # type: ignore[attr-defined]
    return answer.status_code


async def test_loading_pinning_and_unloading(opened: SimpleNamespace) -> None:
    infos = opened.registry.infos
    assert await act(opened.http, "load") == 303
    assert infos[OLD].state is AdapterState.READY
    assert await act(opened.http, "pin") == 303
    assert infos[OLD].pinned
    assert await act(opened.http, "unpin") == 303
    assert not infos[OLD].pinned
    assert await act(opened.http, "unload") == 303
    assert infos[OLD].state is AdapterState.OFFLOADED


async def test_another_default_and_back(opened: SimpleNamespace) -> None:
    registry = opened.registry
    registry.put(adapter("medical", "1.1.0"))
    assert "Roll back" not in (await opened.http.get(PAGE)).text
    assert await act(opened.http, "default", NEW, etag=registry.etag(NEW)) == 303
    assert registry.infos[NEW].default
    assert "Roll back to it" in (await opened.http.get(PAGE)).text
    assert await act(opened.http, "default", OLD) == 303
    assert registry.infos[OLD].default
    assert await act(opened.http, "default", NEW, etag="of-before") == 409
    assert registry.infos[OLD].default
    assert await act(opened.http, "default", NEW) == 303
    assert await act(opened.http, "reset", NEW) == 303
    assert registry.infos[OLD].default


async def test_the_gate_is_overruled_on_record_only(opened: SimpleNamespace) -> None:
    registry = opened.registry
    registry.put(replace(adapter("medical", "1.1.0"), gate="it has no report"))
    asked = (await opened.http.get("/console/adapters/medical/1.1.0/default")).text
    assert "it has no report" in asked
    assert 'name="force"' in asked
    assert await act(opened.http, "default", NEW) == 400
    assert await act(opened.http, "default", NEW, reason="because") == 400
    assert await act(opened.http, "default", NEW, force="yes", reason="the test set is wrong") == 303
    override = registry.infos[NEW].override
    assert override is not None
    assert (override.by, override.reason) == ("127.0.0.1", "the test set is wrong")


@pytest.mark.parametrize("path", ["default", "load", "pin", "unpin", "unload", "reset"])
async def test_without_the_role_there_is_no_form_and_no_act(roled: Roled, path: str) -> None:
    site = await roled()
    page = (await site.olga.get(PAGE)).text
    assert "data-dialog" not in page
    assert "needs the role admin" in page
    asked = (await site.olga.get(f"{PAGE}/{path}")).text
    assert "<button class" not in asked.partition('id="confirm"')[2]
    assert "needs the role admin" in asked
    assert await act(site.olga, path) == 403
    assert site.registry.infos[OLD].state is AdapterState.DISCOVERED
    assert (await site.anna.get(f"{PAGE}/{path}")).status_code == 200
    assert {line["code"] for line in await audited(site)} == {"PERMISSION_DENIED"}  # to be asked is no act


async def test_what_is_no_name(opened: SimpleNamespace) -> None:
    for name in ("", "medical", "adapters/../x", "adapters/medical/versions/9"):
        answer = await post(opened.http, "/console/adapters/load", name=name)
        assert answer.status_code in (400, 404), name
