"""Names and versions of adapters."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.errors import InvalidRequest
from router.names import (
    known_names,
    known_versions,
    looks_like_version,
    parse_adapter,
    parse_version,
    split_adapter,
    version_key,
)
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


# -- names


SPEC_ORDER = [
    "latest",
    "1.0.0-alpha",
    "1.0.0-alpha.1",
    "1.0.0-alpha.beta",
    "1.0.0-beta",
    "1.0.0-beta.2",
    "1.0.0-beta.11",
    "1.0.0-rc.1",
    "1.0.0",
    "1.2",
    "v1.10.0",
    "2",
    "2.0.1",
]


def test_semver_order() -> None:
    assert sorted(set(SPEC_ORDER), key=version_key) == SPEC_ORDER


@given(st.lists(st.from_regex(r"[0-9A-Za-z][0-9A-Za-z.+-]{0,12}", fullmatch=True), max_size=6))
def test_every_version_has_a_place_in_one_total_order(versions: list[str]) -> None:
    ordered = sorted(versions, key=version_key)
    assert sorted(set(versions), key=version_key) == list(dict.fromkeys(ordered))
    assert len({version_key(v) for v in versions}) == len(set(versions))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1.2.0", True), ("v2", True), ("3", True), ("1.0-rc.1", True), ("medical", False), ("9" * 40, False)],
)
def test_which_folder_names_are_versions(text: str, expected: bool) -> None:
    assert looks_like_version(text) is expected


def test_hints() -> None:
    assert known_names("medcal", ["medical", "legal"]) == "; did you mean 'medical'?"
    assert known_names("zzz", []) == "; no adapter is there yet"
    assert known_names("zzz", [f"n{i}" for i in range(7)]) == "; known: n0, n1, n2, n3, n4 and 2 more"
    assert known_versions(["1.0.0", "1.10.0", "1.9.0"]) == "; its versions: 1.10.0, 1.9.0, 1.0.0"
    assert known_versions([str(i) for i in range(12)]).endswith(" and 2 more")
