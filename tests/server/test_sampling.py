from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.errors import Findings, InvalidRequest
from router.server.convert import RANGES, sampling_of
from router.types import Sampling
from router.v1 import inference_pb2 as pb

FLOATS = [rule.field for rule in RANGES if rule.field not in ("top_k", "seed", "logprobs")]


def convert(**fields: object) -> Sampling:
    found = Findings()
    sampling = sampling_of(pb.Sampling(**fields), 100, found)
    found.check()
    return sampling


def test_unset_is_not_zero() -> None:
    assert convert() == Sampling()
    zeros = convert(temperature=0, top_k=0, min_p=0, frequency_penalty=0, min_tokens=0, seed=0, logprobs=0)
    assert (zeros.temperature, zeros.top_k, zeros.min_tokens, zeros.seed) == (0.0, 0, 0, 0)
    assert zeros != Sampling()


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("max_tokens", [1, 100], [0, -1, 101]),
        ("min_tokens", [0, 100], [-1, 101]),
        ("temperature", [0, 2], [-0.01, 2.01]),
        ("top_p", [0.01, 1], [0, 1.01, -1]),
        ("top_k", [0, 2**31 - 1], [-1]),
        ("min_p", [0, 1], [-0.01, 1.01]),
        ("repetition_penalty", [0.01, 2], [0, 2.01, -1]),
        ("frequency_penalty", [-2, 2], [-2.01, 2.01]),
        ("presence_penalty", [-2, 2], [-2.01, 2.01]),
        ("seed", [0, 2**63 - 1], [-1]),
        ("logprobs", [0, 20], [-1, 21]),
    ],
)
def test_ranges(field: str, good: list[float], bad: list[float]) -> None:
    for value in good:
        assert getattr(convert(**{field: value}), field) == pytest.approx(value)
    for value in bad:
        with pytest.raises(InvalidRequest, match=rf"^sampling\.{field}: must be"):
            convert(**{field: value})


@pytest.mark.parametrize("field", FLOATS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_only_finite_numbers(field: str, value: float) -> None:
    with pytest.raises(InvalidRequest, match="finite"):
        convert(**{field: value})


@given(st.sampled_from(FLOATS), st.floats(width=32))
def test_a_float_is_taken_as_it_is_or_named(field: str, value: float) -> None:
    try:
        taken = getattr(convert(**{field: value}), field)
    except InvalidRequest as error:
        named = [v.field for v in error.violations]
    else:
        named = []
        assert taken == value
    allowed = any(rule.field == field and not rule.problem(value) for rule in RANGES)
    assert named == ([] if allowed else [f"sampling.{field}"])


def test_min_above_max() -> None:
    with pytest.raises(InvalidRequest, match="min_tokens: must not be more"):
        convert(min_tokens=6, max_tokens=5)


def test_stops() -> None:
    assert convert(stop=["a", "b"]).stop == ("a", "b")
    assert convert(stop=[]).stop is None
    with pytest.raises(InvalidRequest, match="at most 16"):
        convert(stop=["x"] * 17)
