"""Ids of answers: whose an answer is shows in its id, and in nothing that a thief could change."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.access.access import may_be_of, new_response_id

TENANTS = st.from_regex(r"[a-z0-9][a-z0-9-]{0,62}", fullmatch=True)


def test_ids_are_random_and_tagged_where_there_are_tenants() -> None:
    assert re.fullmatch("[0-9a-f]{32}", new_response_id())
    assert re.fullmatch("[0-9a-f]{40}", new_response_id("acme"))
    assert len({new_response_id("acme")[:32] for _ in range(1000)}) == 1000


@given(TENANTS, TENANTS)
def test_an_id_is_its_tenants_alone(mine: str, other: str) -> None:
    made = new_response_id(mine)
    assert may_be_of(made, mine)
    assert may_be_of(made, other) == (mine == other)
    assert may_be_of(made, "")  # who is told apart from nobody


@pytest.mark.parametrize("old", ["0a" * 16, "0a1b2c", "x" * 40, "A" * 40, ""])
def test_what_has_no_tag_can_be_anybodys(old: str) -> None:
    assert may_be_of(old, "acme")
