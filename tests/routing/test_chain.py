"""Labels and hints over adapters, executors of all classifiers together, and the log of lost votes."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any

import pytest

from router.classifiers.fake_base import FakeBase
from router.errors import NotFound
from router.routing import BaseModel, Classifier, Scores
from router.routing.chain import (
    CatalogView,
    ClassifierChain,
    Executors,
    Labels,
    LostVoteLog,
    narrow,
)
from router.routing.policy import Rule
from router.types import AdapterProfile, LostVote, RoutingHints, VoteError

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
    monkeypatch.setattr("router.routing.chain.AGAIN_SECONDS", 0.01)
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


async def test_nobody_waits_for_the_fit_of_one_that_asks_the_base(kit: Any) -> None:
    gate = threading.Event()

    class Slow(Classifier):
        name = "slow"

        def bind(self, base: BaseModel) -> None:
            """It asks the base."""

        def fit(self, adapters: Any) -> None:
            gate.wait(10)

    executors = Executors(lambda timeout: FakeBase())
    executors.sync([kit.registered(Slow())], (kit.medical,))
    async with asyncio.timeout(2):
        await executors.wait_for_fits(10)
    (executor,) = executors.in_order()
    assert not executor.ready
    gate.set()
    await kit.eventually(lambda: executor.ready)
    await executors.close(5)


async def test_one_that_asks_the_base_learns_after_the_others(kit: Any) -> None:
    gate, order = threading.Event(), []

    class Encodes(Classifier):
        name = "encodes"

        def fit(self, adapters: Any) -> None:
            gate.wait(10)
            order.append(self.name)

    class Reads(Classifier):
        name = "reads"

        def bind(self, base: BaseModel) -> None:
            """It asks the base."""

        def fit(self, adapters: Any) -> None:
            order.append(self.name)

    executors = Executors(lambda timeout: FakeBase())
    executors.sync(
        [kit.registered(Reads(), priority=1), kit.registered(Encodes(), priority=2)],
        (kit.medical,),
    )
    await asyncio.sleep(0.05)
    assert order == []
    gate.set()
    async with asyncio.timeout(10):
        await executors.wait_for_fits(10, with_base=True)
    assert order == ["encodes", "reads"]
    await executors.close(5)


async def test_a_close_tells_a_fit_to_end_and_waits_for_it(kit: Any) -> None:
    told, ended = threading.Event(), threading.Event()

    class Long(Classifier):
        name = "long"

        def fit(self, adapters: Any) -> None:
            assert told.wait(10)
            ended.set()

        def close(self) -> None:
            told.set()

    executors = Executors()
    executors.sync([kit.registered(Long())], (kit.medical,))
    await asyncio.sleep(0.05)
    await executors.close(5)
    assert ended.is_set()


async def test_a_fit_that_does_not_end_holds_nobody_up_for_long(kit: Any) -> None:
    gate = threading.Event()

    class Deaf(Classifier):
        name = "deaf"

        def fit(self, adapters: Any) -> None:
            gate.wait(10)

        def close(self) -> None:
            raise ValueError("deaf")

    executors = Executors()
    executors.sync([kit.registered(Deaf())], (kit.medical,))
    await asyncio.sleep(0.05)
    async with asyncio.timeout(5):
        await executors.close(0.05)
    gate.set()


# -- classifiers for other languages


class Voice(Classifier):
    """For other languages."""

    name = "voice"
    foreign = True

    def __init__(self, lacking: str = "") -> None:
        self.lacking, self.learned, self.asked = lacking, 0, 0

    def lacks(self) -> str:
        return self.lacking

    def fit(self, adapters: Any) -> None:
        self.learned += 1

    def classify_batch(self, requests: Any) -> Any:
        self.asked += len(requests)
        return [Scores({"medical": 0.9})] * len(requests)


def chain_with(kit: Any, voice: Voice) -> tuple[Executors, ClassifierChain]:
    executors = Executors()
    given = [kit.registered(voice, priority=1), kit.registered(kit.says("other", None), priority=2)]
    executors.sync(given, (kit.medical,))
    return executors, ClassifierChain(executors, foreign=lambda text: text == "hallo")


async def voted(kit: Any, chain: ClassifierChain, text: str) -> list[str]:
    request, labels = kit.asking(text), Labels((kit.medical,))
    everyone = [vote.classifier for vote in await chain.everyone(request, labels)]
    votes = await chain.until_settled(request, labels, {"medical"}, Rule())
    assert [vote.classifier for vote in votes] == everyone[: len(votes)]
    return everyone


async def test_one_for_other_languages_learns_with_the_first_such_request(kit: Any) -> None:
    voice = Voice()
    executors, chain = chain_with(kit, voice)
    executor = executors.in_order()[0]
    assert await voted(kit, chain, "hello") == ["other"]
    assert (voice.learned, voice.asked, executor.registration.health.state, executor.flaw) == (
        0,
        0,
        "asleep",
        "",
    )
    assert await voted(kit, chain, "hallo") == ["voice", "other"]
    assert (voice.learned, executor.registration.health.state) == (1, "ready")
    await executors.close(5)


async def test_every_request_in_another_language_waits_until_it_has_learned(
    kit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    monkeypatch.setattr(Voice, "fit", lambda self, adapters: go_on.wait(60))
    executors, chain = chain_with(kit, Voice())
    asked = [asyncio.create_task(voted(kit, chain, "hallo")) for _ in range(2)]
    assert await voted(kit, chain, "hello") == ["other"]
    assert not any(one.done() for one in asked)
    go_on.set()
    assert await asyncio.gather(*asked) == [["voice", "other"]] * 2
    await executors.close(5)


async def test_one_that_lacks_something_is_not_asked_and_that_is_no_flaw(kit: Any) -> None:
    executors, chain = chain_with(kit, Voice("fetch its model"))
    executor = executors.in_order()[0]
    assert await voted(kit, chain, "hallo") == ["other"]
    health = executor.registration.health
    assert (health.state, health.fit_error, executor.flaw) == ("unable", "fetch its model", "")
    await executors.close(5)


SLOW, RAISED = LostVote("slow", VoteError.TIMEOUT), LostVote("slow", VoteError.RAISED)


async def test_the_first_loss_is_logged_at_once_and_later_ones_together(
    caplog: pytest.LogCaptureFixture, kit: Any
) -> None:
    losses = LostVoteLog(seconds=0.2)
    with caplog.at_level(logging.WARNING):
        losses.note(SLOW)
        assert caplog.messages == ["votes of classifier slow were lost: timeout 1"]
        for lost in (SLOW, RAISED, SLOW):
            losses.note(lost)
        assert len(caplog.messages) == 1
        await kit.eventually(lambda: len(caplog.messages) == 2)
        assert caplog.messages[1] == "votes of classifier slow were lost: timeout 2, raised 1"
    losses.close()


async def test_each_classifier_has_its_own_line(caplog: pytest.LogCaptureFixture) -> None:
    losses = LostVoteLog()
    losses.note(SLOW)
    losses.note(LostVote("other", VoteError.BREAKER_OPEN))
    assert caplog.messages == [
        "votes of classifier slow were lost: timeout 1",
        "votes of classifier other were lost: breaker-open 1",
    ]
    losses.close()


async def test_a_quiet_minute_logs_nothing(caplog: pytest.LogCaptureFixture, kit: Any) -> None:
    losses = LostVoteLog(seconds=0.02)
    losses.note(SLOW)
    await kit.eventually(lambda: not losses.waiting)
    assert len(caplog.messages) == 1
    losses.note(SLOW)
    assert len(caplog.messages) == 2
    losses.close()


async def test_what_was_not_logged_yet_is_at_the_close(caplog: pytest.LogCaptureFixture) -> None:
    losses = LostVoteLog()
    losses.note(SLOW)
    losses.note(SLOW)
    losses.close()
    assert caplog.messages[1:] == ["votes of classifier slow were lost: timeout 1"]
    await asyncio.sleep(0)
    assert not losses.waiting
