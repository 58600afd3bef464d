"""The life of a decision."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from router.errors import AdapterNotFound, InvalidRequest, NotFound
from router.routing import Scores
from router.routing.router import Router
from router.types import AdapterRef, Decision, Reason, Vote

Start = Callable[..., Awaitable[Router]]


@pytest.fixture
async def start(kit: Any) -> AsyncIterator[Start]:
    routers: list[Router] = []

    async def start(*registrations: Any, catalog: Any = None, **options: Any) -> Router:
        catalog = catalog or kit.catalog([kit.medical, kit.legal, kit.translation])
        routers.append(Router(catalog, kit.host(*registrations), **options))
        await routers[-1].start()
        return routers[-1]

    yield start
    for router in routers:
        await router.close()


def went(decision: Decision) -> tuple[str, Reason, str]:
    return (decision.adapter.name if decision.adapter else "", decision.reason, decision.classifier)


async def test_an_explicit_adapter_wins_and_asks_nobody(kit: Any, start: Start) -> None:
    says = kit.says("c", Scores({"legal": 1.0}))
    router = await start(kit.registered(says))
    decision = await router.route(kit.asking(adapter="adapters/medical/versions/1.0.0", domain="legal"))
    assert decision.adapter == AdapterRef("medical", "1.0.0")
    assert (decision.reason, decision.confidence, decision.domain) == (Reason.EXPLICIT, 1.0, "medical")
    assert decision.digest == "d" * 64
    assert says.batches == []


@pytest.mark.parametrize("name", ["base", "adapters/base"])
async def test_the_base_by_name_asks_nobody(kit: Any, start: Start, name: str) -> None:
    says = kit.says("c", Scores({"legal": 1.0}))
    router = await start(kit.registered(says))
    decision = await router.route(kit.asking(adapter=name, domain="legal"))
    assert (decision.adapter, decision.reason, decision.confidence) == (None, Reason.EXPLICIT, 1.0)
    assert says.batches == []
    await router.route(kit.asking(adapter=name, explain=True))
    assert len(says.batches) == 1
    with pytest.raises(AdapterNotFound):
        await router.route(kit.asking(adapter="adapters/base/versions/1"))


@pytest.mark.parametrize(
    ("hints", "error"),
    [
        ({"adapter": "adapters/unknown"}, AdapterNotFound),
        ({"adapter": "adapters/medical/versions/9"}, AdapterNotFound),
        ({"adapter": "medical"}, InvalidRequest),
        ({"domain": "cooking"}, NotFound),
        ({"task": "cooking"}, NotFound),
    ],
)
async def test_what_does_not_exist_is_never_the_base(kit: Any, start: Start, hints: Any, error: Any) -> None:
    router = await start(kit.registered(kit.says("c", Scores({"legal": 1.0}))))
    with pytest.raises(error):
        await router.route(kit.asking(**hints))


async def test_a_hint_that_leaves_one(kit: Any, start: Start) -> None:
    router = await start()
    assert went(await router.route(kit.asking(task="translation"))) == ("translation", Reason.HINT, "")


async def test_a_hint_that_leaves_several_lets_classifiers_choose_among_them(kit: Any, start: Start) -> None:
    scores = Scores({"translation": 0.9, "legal": 0.7, "medical": 0.1})
    router = await start(kit.registered(kit.says("c", scores)))
    decision = await router.route(kit.asking(task="question-answering"))
    assert went(decision) == ("legal", Reason.CLASSIFIED, "c")
    assert decision.confidence == 0.7


async def test_the_first_sure_one_decides_and_later_ones_are_not_asked(kit: Any, start: Start) -> None:
    unsure = kit.says("cheap", Scores({"medical": 0.4}))
    sure = kit.says("middle", Scores({"medical": 0.8}))
    never = kit.says("dear", Scores({"legal": 1.0}))
    seen: list[Vote] = []
    router = await start(
        kit.registered(never, priority=30),
        kit.registered(unsure, priority=10),
        kit.registered(sure, priority=20),
        on_vote=seen.append,
    )
    decision = await router.route(kit.asking())
    assert went(decision) == ("medical", Reason.CLASSIFIED, "middle")
    assert (decision.votes, never.batches) == ((), [])
    assert [v.classifier for v in seen] == ["cheap", "middle"]


async def test_explaining_asks_everyone_and_changes_nothing(kit: Any, start: Start) -> None:
    router = await start(
        kit.registered(kit.says("a", Scores({"medical": 0.9}, evidence="said so")), priority=1),
        kit.registered(kit.says("b", Scores({"legal": 1.0})), priority=2),
        kit.registered(kit.says("c"), priority=3),
    )
    decision = await router.route(kit.asking(explain=True))
    assert went(decision) == ("medical", Reason.CLASSIFIED, "a")
    assert [(v.classifier, dict(v.scores), v.declined, v.evidence) for v in decision.votes] == [
        ("a", {"medical": 0.9}, False, "said so"),
        ("b", {"legal": 1.0}, False, ""),
        ("c", {}, True, ""),
    ]
    explicit = await router.route(kit.asking(explain=True, adapter="adapters/legal"))
    assert went(explicit) == ("legal", Reason.EXPLICIT, "")
    assert len(explicit.votes) == 3


async def test_nobody_sure_is_abstention_with_the_best_guess(kit: Any, start: Start) -> None:
    router = await start(kit.registered(kit.says("c", Scores({"legal": 0.45}))))
    decision = await router.route(kit.asking())
    assert went(decision) == ("", Reason.ABSTAINED, "c")
    assert (decision.adapter, decision.confidence, decision.threshold) == (None, 0.45, 0.5)


async def test_all_declining_is_abstention(kit: Any, start: Start) -> None:
    router = await start(kit.registered(kit.says("c")))
    assert went(await router.route(kit.asking())) == ("", Reason.ABSTAINED, "")


async def test_nobody_to_ask_is_fallback(kit: Any, start: Start) -> None:
    assert went(await (await start()).route(kit.asking())) == ("", Reason.FALLBACK, "")
    broken = await start(kit.registered(kit.says("c", "nonsense")))
    decision = await broken.route(kit.asking(explain=True))
    assert went(decision) == ("", Reason.FALLBACK, "")
    assert decision.votes[0].error == "invalid"


async def test_a_label_that_nothing_is_called_is_an_invalid_vote_that_says_so(kit: Any, start: Start) -> None:
    router = await start(kit.registered(kit.says("c", Scores({"astrology": 1.0}))))
    (vote,) = (await router.route(kit.asking(explain=True))).votes
    assert (vote.error, vote.evidence) == ("invalid", "no adapter, domain or task is called 'astrology'")


async def test_the_requests_own_deadline_bounds_the_vote(kit: Any, start: Start) -> None:
    gate = threading.Event()
    router = await start(kit.registered(kit.says("c", lambda r: gate.wait(60)), timeout=60.0))
    async with asyncio.timeout(30):
        decision = await router.route(kit.asking(explain=True, deadline=time.monotonic() + 0.05))
    assert decision.votes[0].error == "timeout"
    gate.set()


async def test_an_adapter_that_goes_while_classifiers_are_asked_leaves_the_base(
    kit: Any, start: Start
) -> None:
    catalog = kit.catalog([kit.medical, kit.legal])
    loop = asyncio.get_running_loop()

    def answer(request: Any) -> Scores:
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop).result(5)
        loop.call_soon_threadsafe(catalog.become, kit.legal)
        return Scores({"medical": 1.0})

    router = await start(kit.registered(kit.says("c", answer)), catalog=catalog)
    assert went(await router.route(kit.asking())) == ("", Reason.ABSTAINED, "c")


async def test_a_cancelled_request_leaves_the_classifier_usable(kit: Any, start: Start) -> None:
    router = await start(kit.registered(kit.says("c", lambda r: time.sleep(0.1) or Scores({"legal": 1.0}))))
    task = asyncio.create_task(router.route(kit.asking()))
    await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert went(await router.route(kit.asking())) == ("legal", Reason.CLASSIFIED, "c")
