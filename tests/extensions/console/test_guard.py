"""Hosts: a foreign name that points here gets nothing."""

from __future__ import annotations

from types import SimpleNamespace


async def test_a_page_under_a_foreign_name_gets_no_page(opened: SimpleNamespace) -> None:
    answer = await opened.http.get("/console/adapters", headers={"host": "evil.example"})
    assert answer.status_code == 403
    assert "medical" not in answer.text
