"""What `register` accepts, and what it says when it does not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from router.classifiers.contract import Registrar
from router.routing import Classifier, Scores
from router.types import Request


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
