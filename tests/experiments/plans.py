"""Plans for tests: a good one, and strategies of any."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from router.experiments.model import Aggregate, ArmSpec, Kind, MetricSpec, Mode, SegmentSpec, Spec, Unanswered
from router.types import AdapterRef

SOLVED = MetricSpec("solved", Kind.PROPORTION)


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


texts = st.text(max_size=20)
numbers = st.floats(allow_nan=False, allow_infinity=False)
metrics = st.builds(
    MetricSpec,
    name=texts,
    kind=st.sampled_from([Kind.PROPORTION, Kind.MEAN]),
    higher_is_better=st.booleans(),
    aggregate=st.sampled_from(Aggregate),
    missing=st.sampled_from(Unanswered),
    covariate=st.booleans(),
    margin=numbers,
    relative=st.booleans(),
    cap=st.none() | numbers,
    least=numbers.filter(bool) | st.just(0.0),
    window=st.integers(0, 10**8).map(lambda ms: ms / 1000),
    improve=st.booleans(),
) | st.builds(MetricSpec, name=texts, kind=st.just(Kind.RATIO), per=texts.filter(bool))
names = st.from_regex(r"[a-z0-9_.]{1,20}", fullmatch=True).filter(lambda name: name != "base")
refs = st.builds(AdapterRef, name=names, version=names)
arms = st.builds(ArmSpec, name=texts, weight=numbers, adapter=st.none() | refs)
seconds = st.integers(0, 10**8).map(lambda ms: ms / 1000)
counts = st.integers(-(2**40), 2**40)
plans = st.builds(
    Spec,
    hypothesis=texts,
    route=st.sampled_from(["", "base"]) | names,
    arms=st.lists(arms, max_size=4).map(tuple),
    control=texts,
    primary=metrics,
    guardrails=st.lists(metrics, max_size=3).map(tuple),
    mode=st.sampled_from(Mode),
    unit=texts.filter(bool),
    unit_label=texts,
    enrolment=numbers,
    namespace=texts,
    slot=st.tuples(numbers, numbers),
    margin=numbers,
    alpha=numbers,
    planned_units=counts,
    min_units=counts,
    min_matured=numbers,
    window=seconds,
    shadow_share=numbers,
    secondary=st.lists(metrics, max_size=3).map(tuple),
    segments=st.lists(st.builds(SegmentSpec, texts, st.lists(texts, max_size=3).map(tuple)), max_size=3).map(
        tuple
    ),
    grace=seconds,
    equal_arms=st.booleans(),
)
