from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.errors import InvalidRequest
from router.names import parse_adapter, parse_version, split_adapter
from router.types import AdapterRef


def test_both_forms() -> None:
    assert parse_adapter("adapters/medical") == ("medical", "")
    assert parse_adapter("adapters/medical/versions/1.2.0") == ("medical", "1.2.0")
    assert parse_version("adapters/medical/versions/1.2.0") == AdapterRef("medical", "1.2.0")


@pytest.mark.parametrize(
    "name",
    ["", "medical", "adapters/", "adapters/a/b", "adapters/a/versions/", "/adapters/a", "adapters/../x/y"],
)
def test_other_forms_are_named(name: str) -> None:
    with pytest.raises(InvalidRequest, match=r"^routing\.adapter: must be adapters/NAME"):
        parse_adapter(name, "routing.adapter")


def test_version_is_required_where_asked() -> None:
    with pytest.raises(InvalidRequest, match="versions/VERSION"):
        parse_version("adapters/medical")


@given(st.text())
def test_never_yields_a_path(text: str) -> None:
    parts = split_adapter(f"adapters/{text}")
    assert parts is None or not any("/" in part or "\0" in part or "\n" in part for part in parts)


def test_the_name_of_a_folder_is_answered_with_what_it_is_served_as() -> None:
    with pytest.raises(
        InvalidRequest, match="a folder 'Alles Über Recht' is served as adapters/alles-ber-recht"
    ):
        parse_adapter("adapters/Alles Über Recht")


@pytest.mark.parametrize(
    "name", ["", "adapters/", "adapters/a/b", "a\nb", "adapters/\x00 x", "x" * 10_000, "ü"]
)
def test_what_gives_no_name_is_answered_with_the_rule_alone(name: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_adapter(name)
    assert "is served as" not in str(caught.value)
    assert len(str(caught.value)) < 300
