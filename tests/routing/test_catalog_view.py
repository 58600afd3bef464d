"""Labels as sets of adapters; hints as a smaller choice."""

from __future__ import annotations

from typing import Any

import pytest

from router.errors import NotFound
from router.routing import catalog_view
from router.routing.catalog_view import CatalogView, Labels, narrow
from router.types import AdapterProfile, RoutingHints

A = AdapterProfile("a", "1", domain="medical", task="summarization")
B = AdapterProfile("b", "1", domain="medical", task="coding")
C = AdapterProfile("c", "1", task="translation")
MEDICAL = AdapterProfile("medical", "1", domain="medical")


@pytest.mark.parametrize(
    ("confidences", "expected"),
    [
        ({"a": 0.5}, {"a": 0.5}),
        ({"medical": 0.8}, {"a": 0.8, "b": 0.8}),
        ({"medical": 0.8, "b": 0.1}, {"a": 0.8, "b": 0.1}),
        ({"b": 0.1, "medical": 0.8}, {"a": 0.8, "b": 0.1}),
        ({"medical": 0.3, "coding": 0.6}, {"a": 0.3, "b": 0.6}),
        ({"unknown": 1.0, "c": 0.2}, {"c": 0.2}),
        ({"unknown": 1.0}, {}),
        ({}, {}),
    ],
)
def test_a_label_stands_for_its_adapters(confidences: dict[str, float], expected: dict[str, float]) -> None:
    assert Labels([A, B, C]).spread(confidences) == expected


def test_a_name_wins_over_a_domain_of_the_same_text() -> None:
    assert Labels([A, MEDICAL]).spread({"medical": 0.9}) == {"medical": 0.9}


@pytest.mark.parametrize(
    ("hints", "names"),
    [
        ({}, "a b c"),
        ({"domain": "medical"}, "a b"),
        ({"task": "translation"}, "c"),
        ({"domain": "medical", "task": "coding"}, "b"),
        ({"domain": "medical", "task": "translation"}, "c"),
    ],
)
def test_hints_narrow(hints: dict[str, str], names: str) -> None:
    assert [p.name for p in narrow([A, B, C], RoutingHints(**hints))] == names.split()


@pytest.mark.parametrize(
    ("hints", "text"),
    [
        ({"domain": "legal"}, "no adapter that may be routed to has it; there are medical"),
        ({"task": "poetry"}, "there are coding, summarization, translation"),
        ({"domain": "legal", "task": "coding"}, "domain 'legal'"),
    ],
)
def test_an_unknown_hint_is_not_found_and_says_what_there_is(hints: dict[str, str], text: str) -> None:
    with pytest.raises(NotFound, match=text):
        narrow([A, B, C], RoutingHints(**hints))


def test_a_pair_that_nobody_has_is_not_found() -> None:
    legal = AdapterProfile("l", "1", domain="legal", task="coding")
    with pytest.raises(NotFound, match="no adapter that may be routed to has both"):
        narrow([A, legal], RoutingHints(domain="legal", task="summarization"))


def test_without_adapters_every_hint_is_not_found() -> None:
    with pytest.raises(NotFound, match="there are none"):
        narrow([], RoutingHints(domain="medical"))


async def test_an_exception_while_learning_is_shown_and_learning_goes_on(
    kit: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(catalog_view, "AGAIN_SECONDS", 0.01)
    catalog, broken = kit.catalog([A]), True

    async def learn(profiles: tuple[AdapterProfile, ...]) -> None:
        if broken:
            raise RuntimeError("no room")

    known = CatalogView(catalog, learn)
    known.start()
    catalog.become(A, B)
    await kit.eventually(lambda: "could not be learned: RuntimeError" in known.flaw)
    assert known.learned == (A,)
    assert sum("could not be learned" in record.message for record in caplog.records) == 1
    broken = False
    await kit.eventually(lambda: known.learned == (A, B))
    await kit.eventually(lambda: known.flaw == "")
    known.close()
