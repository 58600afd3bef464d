"""Feedback in the database: one row for each answer, bounded, and deleted by unit and tenant."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from router.errors import ConfigError
from router.feedback import store as stores
from router.feedback.model import Feedback
from router.feedback.store import FeedbackStore
from router.shared import database
from tests.extensions.experiments.store.conftest import empty, server, url

__all__ = ["empty", "server", "url"]
TEXTS = ((("system", "Be brief."), ("user", "What\0?")), "This.", "That.", "no")


@pytest.fixture
def store(url: str) -> Iterator[FeedbackStore]:
    found = FeedbackStore(url)
    yield found
    found.close()


def one(number: int = 1, **fields: Any) -> Feedback:
    plain = {"tenant": "acme", "unit": "u1", "adapter": "medical", "version": "1.0.0", "verdict": "good"}
    return Feedback(f"r{number}", **({"time": 1000.0 + number} | plain | fields))


def test_what_is_kept_is_read_back_the_oldest_first(store: FeedbackStore) -> None:
    messages, answer, corrected, comment = TEXTS
    texts = {"messages": messages, "answer": answer, "corrected": corrected, "comment": comment}
    full = one(2, verdict="corrected", digest="d", should_have_been="legal", **texts)
    for feedback in (full, one(1, tenant="bravo"), one(3, adapter="legal")):
        store.put(feedback)
    assert list(store.read("medical")) == [one(1, tenant="bravo"), full]
    assert list(store.read("medical", since=1001.5)) == [full]
    assert list(store.read("medical", tenant="bravo")) == [one(1, tenant="bravo")]
    assert list(store.read("base")) == []


def test_later_feedback_replaces_earlier(store: FeedbackStore) -> None:
    messages, answer, corrected, _ = TEXTS
    assert store.put(one(verdict="bad", messages=messages, answer=answer)) is not None
    later = one(time=2000.0, verdict="corrected", corrected=corrected, adapter="", version="", unit="")
    kept = one(time=2000.0, verdict="corrected", corrected=corrected, messages=messages, answer=answer)
    assert store.put(later, recalled=False) == (kept, True)
    assert list(store.read("medical")) == [kept]
    assert store.put(one(time=3000.0), texts=False) == (one(time=3000.0), True)  # its texts are gone
    assert store.put(one(9, adapter=""), recalled=False) is None  # of an answer that nobody knows


def test_all_of_a_unit_or_a_tenant_is_deleted(store: FeedbackStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "CHUNK", 2)
    assert store.delete("u1") == 0
    for number in range(5):
        store.put(one(number))
    store.put(one(5, unit="u2"))
    store.put(one(6, tenant="bravo"))
    assert store.delete("u1", "acme") == 5
    assert [found.response_id for found in store.read("medical")] == ["r5", "r6"]
    assert store.delete(tenant="bravo") == 1
    with pytest.raises(ValueError, match="name a unit or a tenant"):
        store.delete()


def test_rows_that_moved_in_the_file_leave_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`secure_delete` alone leaves copies of rows that SQLite moved from page to page, here two."""
    monkeypatch.setattr(database, "SQLITE_PRAGMAS", (*database.SQLITE_PRAGMAS, "synchronous=OFF"))
    store, chance = FeedbackStore(f"sqlite:///{tmp_path}/feedback.db"), random.Random(1)
    there: dict[str, str] = {}  # text -> tenant
    for number in range(160):
        text, tenant = f"text-{number:04d}-", f"t{chance.choice(range(6))}"
        messages = (("user", text + "x" * 100),)
        store.put(one(number, tenant=tenant, unit=f"u{number}", messages=messages))
        there[text] = tenant
        if number % 20 == 19:
            gone = f"t{chance.choice(range(6))}"
            store.delete(tenant=gone)
            there = {text: tenant for text, tenant in there.items() if tenant != gone}
    assert store.erase()
    on_disk = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert {found.decode() for found in re.findall(rb"text-\d{4}-", on_disk)} == set(there)
    store.close()


def test_old_rows_and_those_beyond_the_bound_go(url: str) -> None:
    store = FeedbackStore(url, most=3)
    for number in range(5):
        store.put(one(number))
        store.put(one(number, tenant="bravo", time=50.0 + number))
    store.put(one(9, adapter="legal"))
    assert store.expire(52.0) == 2
    assert store.trim() == 2
    left = [(found.tenant, found.response_id) for found in store.read("medical")]
    assert left == [("bravo", f"r{n}") for n in (2, 3, 4)] + [("acme", f"r{n}") for n in (2, 3, 4)]
    assert len(list(store.read("legal"))) == 1
    store.close()


def test_two_servers_see_the_same(url: str) -> None:
    first, second = FeedbackStore(url), FeedbackStore(url)
    first.put(one(1))
    second.put(one(2))
    assert [found.response_id for found in first.read("medical")] == ["r1", "r2"]
    first.close()
    second.close()


def test_nothing_is_made_before_it_is_needed_and_the_file_is_private(tmp_path: Path) -> None:
    store = FeedbackStore.in_folder(tmp_path / "state")
    assert (list(store.read("medical")), store.expire(9e9), store.trim()) == ([], 0, 0)
    assert not (tmp_path / "state").exists()
    store.put(one())
    assert (tmp_path / "state" / stores.FILE).stat().st_mode & 0o777 == 0o600
    store.close()


def test_tables_of_another_version_are_refused(tmp_path: Path) -> None:
    store = FeedbackStore.in_folder(tmp_path)
    store.put(one())
    with store._writing() as conn:
        conn.execute(update(stores.version).values(version=stores.VERSION + 1))
    store.close()
    with pytest.raises(ConfigError, match="written by another lora-router"):
        store.put(one())
