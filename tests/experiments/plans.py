"""Plans for tests: a good one, and strategies of any."""

from __future__ import annotations

import builtins
import types
from collections import abc
from dataclasses import is_dataclass, replace
from typing import Any, get_args, get_origin, get_type_hints

from hypothesis import strategies as st

from router.experiments.conversion import NAMES
from router.experiments.model import Aggregate, ArmSpec, Kind, MetricSpec, Mode, Spec, Unanswered
from router.types import AdapterRef

SOLVED = MetricSpec("solved", Kind.PROPORTION, aggregate=Aggregate.MAX, missing=Unanswered.EXCLUDED)


def said(metric: MetricSpec) -> MetricSpec:
    """As a server keeps one of a client's outcomes."""
    return replace(metric, aggregate=metric.combined, missing=metric.missing or Unanswered.ZERO)


def plan(**fields: Any) -> Spec:
    """Two versions of medical, an even split."""
    spec = Spec(
        hypothesis="the new version solves more",
        route="medical",
        arms=(
            ArmSpec("old", 0.5, AdapterRef("medical", "1.0.0")),
            ArmSpec("new", 0.5, AdapterRef("medical", "1.1.0")),
        ),
        control="old",
        primary=SOLVED,
    )
    return replace(spec, **fields)


def holdout_plan(**fields: Any) -> Spec:
    """Everybody in experiments against the server's holdout."""
    arms = (ArmSpec("held", 0.1), ArmSpec("all", 0.9))
    return plan(route="", mode=Mode.HOLDOUT, arms=arms, control="held", **fields)


WORDS = st.integers(0, 999).map("w{}".format)
TIMES = st.integers(1000, 10**8).map(lambda milliseconds: milliseconds / 1000)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
PLAIN: dict[Any, st.SearchStrategy[Any]] = {
    str: WORDS,
    bool: st.booleans(),
    int: st.integers(-(2**31), 2**31 - 1),
    float: FINITE,
    object: FINITE,
    tuple[str, ...]: st.lists(WORDS, max_size=3, unique=True).map(tuple),
    AdapterRef: st.builds(AdapterRef, WORDS, WORDS),
}
BY_NAME: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(("window", "grace", "time", *NAMES), TIMES),
    **dict.fromkeys(("hypothesis", "text", "reason"), st.text(max_size=20)),
    **dict.fromkeys(("low", "high"), st.floats(allow_nan=False)),
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
    return st.sampled_from(hint)


def _field(name: str, hint: Any) -> st.SearchStrategy[Any]:
    if name not in BY_NAME or not {float, str} & {hint, *get_args(hint)}:
        return any_of(hint)
    return BY_NAME[name] | st.none() if types.NoneType in get_args(hint) else BY_NAME[name]
