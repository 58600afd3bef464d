"""Executors of all classifiers together."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from router.classifiers.fake_base import FakeBase
from router.routing import BaseModel, Classifier, Scores
from router.routing.catalog_view import Labels
from router.routing.chain import ClassifierChain, Executors, FitProfiles
from router.routing.policy import PlainRule


async def test_nobody_waits_for_the_fit_of_one_that_asks_the_base(kit: Any) -> None:
    gate = threading.Event()

    class Slow(Classifier):
        name = "slow"

        def bind(self, base: BaseModel) -> None:
            """It asks the base."""

        def fit(self, adapters: Any) -> None:
            gate.wait(10)

    executors = Executors(lambda timeout: FakeBase())
    executors.sync([kit.registered(Slow())], FitProfiles((kit.medical,), (kit.medical,)))
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
        FitProfiles((kit.medical,), (kit.medical,)),
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
    executors.sync([kit.registered(Long())], FitProfiles((kit.medical,), (kit.medical,)))
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
    executors.sync([kit.registered(Deaf())], FitProfiles((kit.medical,), (kit.medical,)))
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
    executors.sync(given, FitProfiles((kit.medical,), (kit.medical,)))
    return executors, ClassifierChain(executors, foreign=lambda text: text == "hallo")


async def voted(kit: Any, chain: ClassifierChain, text: str) -> list[str]:
    request, labels = kit.asking(text), Labels((kit.medical,))
    everyone = [vote.classifier for vote in await chain.everyone(request, labels, PlainRule())]
    votes = await chain.until_settled(request, labels, {"medical"}, PlainRule())
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


async def test_one_that_lacks_something_is_not_asked_and_that_is_no_flaw(kit: Any) -> None:
    executors, chain = chain_with(kit, Voice("fetch its model"))
    executor = executors.in_order()[0]
    assert await voted(kit, chain, "hallo") == ["other"]
    health = executor.registration.health
    assert (health.state, health.fit_error, executor.flaw) == ("unable", "fetch its model", "")
    await executors.close(5)
