"""Resource names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.errors import InvalidRequest
from router.routing.router import parse_routed_adapter


@pytest.mark.parametrize(
    ("resource", "expected"),
    [
        ("adapters/medical", ("medical", "")),
        ("adapters/a.b_c-1/versions/1.2.0-rc.1+x", ("a.b_c-1", "1.2.0-rc.1+x")),
    ],
)
def test_good_names(resource: str, expected: tuple[str, str]) -> None:
    assert parse_routed_adapter(resource) == expected


@pytest.mark.parametrize(
    "resource",
    [
        "medical",
        "adapters/",
        "adapters/a/",
        "adapters/a/versions/",
        "adapters/a/versions/../1",
        "adapters/../x",
        "adapters/A",
        "adapters/a\n",
        "adapters/a\0",
        "/adapters/a",
        "adapters/" + "a" * 64,
    ],
)
def test_bad_names_are_named(resource: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_routed_adapter(resource)
    assert caught.value.violations[0].field == "routing.adapter"


@given(st.text())
def test_any_text_is_parsed_or_refused(resource: str) -> None:
    try:
        name, version = parse_routed_adapter(resource)
    except InvalidRequest:
        return
    assert resource == f"adapters/{name}" + (f"/versions/{version}" if version else "")
