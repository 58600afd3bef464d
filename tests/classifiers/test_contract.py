"""Scores are normalised, nonsense is refused, and `register` says what is wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.classifiers.contract import (
    DECLINED,
    INVALID,
    ClassifierAnswer,
    Registrar,
    normalise,
    read_answers,
)
from router.routing import Classifier, Scores
from router.types import Request

NUMBERS = st.floats(allow_nan=True, allow_infinity=True)
KINDS = st.sampled_from(["probability", "logit", "similarity", "nonsense", None, 3])


def test_each_kind() -> None:
    assert normalise({"a": 0.25, "b": 1}, "probability") == {"a": 0.25, "b": 1.0}
    assert normalise({"a": -0.4, "b": 0.8}, "similarity") == {"a": 0.0, "b": 0.8}
    assert normalise({"a": 1000.0, "b": 1000.0}, "logit") == {"a": 0.5, "b": 0.5}
    softmax = normalise({"a": 0.0, "b": math.log(3)}, "logit")
    assert softmax is not None
    assert softmax["b"] == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ({"a": math.nan}, "probability"),
        ({"a": math.inf}, "logit"),
        ({"a": 1.1}, "probability"),
        ({"a": -0.1}, "probability"),
        ({"a": -1.1}, "similarity"),
        ({"a": "1"}, "probability"),
        ({"a": True}, "probability"),
        ({1: 0.5}, "probability"),
        ({}, "probability"),
        ([("a", 1.0)], "probability"),
        ({"a": 0.5}, "percent"),
    ],
)
def test_nonsense(values: Any, kind: str) -> None:
    assert normalise(values, kind) is None


def test_numpy_numbers_count_as_numbers() -> None:
    numpy = pytest.importorskip("numpy")
    assert normalise({"a": numpy.float32(0.5)}, "probability") == {"a": 0.5}


@given(st.dictionaries(st.text(), NUMBERS), KINDS)
def test_whatever_comes_out_lies_in_0_to_1(values: dict[str, float], kind: Any) -> None:
    got = normalise(values, kind)
    if got is not None:
        assert got.keys() == values.keys()
        assert all(0 <= v <= 1 for v in got.values())
        if kind == "logit":
            assert math.fsum(got.values()) == pytest.approx(1)


@pytest.mark.parametrize("returned", [None, [], [None], [None] * 3, "ab", {"a": 1}, iter([None, None]), 7])
def test_a_batch_of_another_shape_is_all_invalid(returned: Any) -> None:
    assert read_answers(returned, 2) == (INVALID, INVALID)


def test_one_bad_row_costs_only_itself() -> None:
    good = Scores({"a": 0.5}, evidence="x" * 900)
    rows = [good, None, Scores({"a": math.nan}), "a", Scores({"a": 1.0}, evidence=3)]  # type: ignore[arg-type]
    assert read_answers(rows, 5) == (
        ClassifierAnswer({"a": 0.5}, evidence="x" * 500),
        DECLINED,
        INVALID,
        INVALID,
        INVALID,
    )


class Good(Classifier):
    name = "good"

    def classify_batch(self, requests: Sequence[Request]) -> Sequence[Scores | None]:
        return [None] * len(requests)


class Async(Good):
    async def classify_batch(self, requests):  # type: ignore[override]
        return [None] * len(requests)


class AsyncGenerator(Good):
    async def classify_batch(self, requests):  # type: ignore[override]
        yield None


class Generator(Good):
    def classify_batch(self, requests):  # type: ignore[override]
        yield None


class NoArgument(Good):
    def classify_batch(self):  # type: ignore[override]
        return []


class Unwritten(Classifier):
    name = "unwritten"


class Nameless(Good):
    name = ""


@pytest.mark.parametrize(("kind", "is_async"), [(Good, False), (Async, True)])
def test_sync_and_async_are_accepted(kind: type[Classifier], is_async: bool) -> None:
    register = Registrar("p")
    register(kind(), timeout_ms=250, required=True)
    (got,) = register.registrations
    assert (got.is_async, got.timeout, got.required, got.plugin) == (is_async, 0.25, True, "p")


@pytest.mark.parametrize(
    ("argument", "text"),
    [
        (Good, "pass an instance, Good()"),
        (object(), "subclass router.routing.Classifier"),
        (Nameless(), "set `name`"),
        (Unwritten(), "does not define classify_batch"),
        (AsyncGenerator(), "is a generator"),
        (Generator(), "is a generator"),
        (NoArgument(), "must take one argument"),
    ],
)
def test_what_is_no_classifier_is_refused(argument: Any, text: str) -> None:
    with pytest.raises((TypeError, ValueError), match=text.replace("(", r"\(").replace(")", r"\)")):
        Registrar("p")(argument)


@pytest.mark.parametrize(
    "options",
    [{"priority": "1"}, {"priority": True}, {"timeout_ms": 0}, {"timeout_ms": 10**6}, {"timeout_ms": 1.5}],
)
def test_bad_numbers_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError), match=next(iter(options))):
        Registrar("p")(Good(), **options)


def test_required_and_optional_at_once_are_refused() -> None:
    with pytest.raises(ValueError, match="drop one"):
        Registrar("p")(Good(), required=True, optional=True)
