from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.registry.format.names import known_names, known_versions, looks_like_version, version_key

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
