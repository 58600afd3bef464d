"""Random JSON Schemas of what is supported, with answers that end."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

NAMES = st.sampled_from(["name", "a b", 'quo"te', "größe", "x", "id"])
SCALARS: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.builds(
        lambda low, size: {"type": "integer", "minimum": low, "maximum": low + size},
        st.integers(-50, 50),
        st.integers(0, 900),
    ),
    st.builds(lambda n: {"type": "string", "maxLength": n}, st.integers(0, 8)),
    st.builds(lambda n: {"type": "string", "minLength": n, "maxLength": n + 3}, st.integers(0, 4)),
    st.sampled_from(["[a-c]{2,4}", "^(yes|no)$", "^[0-9]{3}-[A-Z]$"]).map(
        lambda p: {"type": "string", "pattern": p if p.startswith("^") else f"^{p}$"}
    ),
    st.just({"type": "string", "format": "date"}),
    st.lists(
        st.one_of(st.text(max_size=6), st.integers(-9, 9), st.booleans(), st.none()),
        min_size=1,
        max_size=4,
        unique_by=repr,
    ).map(lambda values: {"enum": values}),
    st.text(max_size=5).map(lambda value: {"const": value}),
)


def _objects(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    def made(properties: dict[str, Any], required: list[int], closed: bool) -> dict[str, Any]:
        names = list(properties)
        schema = {"type": "object", "properties": properties, "additionalProperties": False}
        if names:
            schema["required"] = sorted({names[i % len(names)] for i in required})
        return schema

    return st.builds(
        made, st.dictionaries(NAMES, inner, max_size=3), st.lists(st.integers(0, 5)), st.booleans()
    )


def _arrays(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.builds(
        lambda items, least, more: {
            "type": "array",
            "items": items,
            "minItems": least,
            "maxItems": least + more,
        },
        inner,
        st.integers(0, 2),
        st.integers(0, 2),
    )


SCHEMAS = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        _objects(inner), _arrays(inner), st.lists(inner, min_size=1, max_size=3).map(lambda of: {"anyOf": of})
    ),
    max_leaves=6,
)
