"""Values of any type, for tests that carry every field somewhere and back."""

from __future__ import annotations

import builtins
import types
import typing
from collections import abc
from dataclasses import is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

from hypothesis import strategies as st

from router.types import AdapterRef, FinishReason, TokenLogprob

WORDS = st.integers(0, 999).map("w{}".format)
TIMES = st.integers(1000, 10**8).map(lambda milliseconds: milliseconds / 1000)
NUMBERS = st.integers(-(2**31), 2**31 - 1)
SINGLE = st.floats(allow_nan=False, width=32)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
PLAIN: dict[Any, st.SearchStrategy[Any]] = {
    str: WORDS,
    bool: st.booleans(),
    int: NUMBERS,
    float: FINITE,
    bytes: st.binary(max_size=4),
    object: FINITE,
    tuple[str, ...]: st.lists(WORDS, max_size=3, unique=True).map(tuple),
    AdapterRef: st.builds(AdapterRef, WORDS, WORDS),
    TokenLogprob: st.builds(
        lambda token, number, logprob, tops, part: TokenLogprob(
            token,
            number,
            logprob,
            tuple(top[:3] for top in tops),
            part,
            tuple(top[3] for top in tops) if any(top[3] for top in tops) else (),
        ),
        *(WORDS, NUMBERS, SINGLE),
        st.lists(st.tuples(WORDS, NUMBERS, SINGLE, st.binary(max_size=3)), max_size=2),
        st.binary(max_size=3),
    ),
    FinishReason: st.sampled_from((FinishReason.STOP, FinishReason.LENGTH, FinishReason.TOOL_CALLS)),
}
TIME_NAMES = (
    *(
        "time",
        "created",
        "updated",
        "started",
        "stopped",
        "ended",
        "since",
        "last_used",
        "latency",
    ),
    *("queue_time", "time_to_first_token", "total_time"),
)
BY_NAME: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(("window", "grace", *TIME_NAMES), TIMES),
    **dict.fromkeys(("hypothesis", "text", "reason"), st.text(max_size=20)),
    **dict.fromkeys(("low", "high"), st.floats(allow_nan=False)),
    "previous": st.sampled_from(["", "base"]) | WORDS,
    "route": st.sampled_from(["", "base"]) | WORDS,
    "shadow_share": st.floats(0.01, 1),
}
"""By type, and by a field's name where it is bounded."""


def any_of(hint: Any) -> st.SearchStrategy[Any]:
    """Values of a type. A new field of a dataclass is among them by itself."""
    if hint in PLAIN:
        return PLAIN[hint]
    if is_dataclass(hint):
        return st.builds(hint, **{name: _field(name, one) for name, one in get_type_hints(hint).items()})
    match get_origin(hint), get_args(hint):
        case (_, (inner, types.NoneType)):
            return st.none() | any_of(inner)
        case (builtins.tuple, (inner, builtins.Ellipsis)):
            return st.lists(any_of(inner), max_size=2).map(tuple)
        case (builtins.tuple, inner):
            return st.tuples(*map(any_of, inner))
        case (abc.Mapping, (_, inner)):
            return st.dictionaries(WORDS, any_of(inner), max_size=2)
        case (typing.Literal, members):
            return st.sampled_from(members)
        case (typing.Union | types.UnionType, members):
            return st.one_of(*map(any_of, members))
    return st.sampled_from(hint)


def _field(name: str, hint: Any) -> st.SearchStrategy[Any]:
    if name not in BY_NAME or not {float, str} & {hint, *get_args(hint)}:
        return any_of(hint)
    return BY_NAME[name] | st.none() if types.NoneType in get_args(hint) else BY_NAME[name]
