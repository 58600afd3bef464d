"""The life of a decision, also while adapters and plugins come and go."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.classifiers.fake_base import FakeBase
from router.errors import AdapterNotFound, InvalidRequest, NotFound
from router.plugins import PluginHost
from router.routing import Classifier, Scores
from router.routing.router import Router, parse_routed_adapter, resolve_mixture
from router.types import (
    EVERYTHING,
    AdapterProfile,
    AdapterRef,
    Decision,
    LostVote,
    MixturePart,
    Reason,
    Visible,
    Vote,
    VoteError,
    VotesByClassifier,
)

Start = Callable[..., Awaitable[Router]]


def went(decision: Decision) -> tuple[str, Reason, str]:
    return (decision.adapter.name if decision.adapter else "", decision.reason, decision.classifier)


async def test_an_explicit_adapter_wins_and_asks_nobody(kit: Any, start: Start) -> None:
    says = kit.says("c", Scores({"legal": 1.0}))
    host = kit.host(kit.registered(says))
    router = await start(host=host)
    host.stale = lambda: pytest.fail("it looks for plugins")
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


async def test_a_hint_decides_or_lets_classifiers_choose_among_what_it_leaves(kit: Any, start: Start) -> None:
    scores = Scores({"translation": 0.9, "legal": 0.7, "medical": 0.1})
    router = await start(kit.registered(kit.says("c", scores)))
    assert went(await router.route(kit.asking(task="translation"))) == ("translation", Reason.HINT, "")
    decision = await router.route(kit.asking(task="question-answering"))
    assert went(decision) == ("legal", Reason.CLASSIFIED, "c")
    assert decision.confidence == 0.7


async def test_only_what_the_caller_may_know_of_is_routed_to_and_told(kit: Any, start: Start) -> None:
    says = kit.says("c", Scores({"legal": 0.95, "medical": 0.6}, evidence="the word clause is legal's"))
    sure = kit.says("d", Scores({"legal": 1.0}))
    router = await start(kit.registered(says), kit.registered(sure))
    mine = Visible(("medical",))
    asked = replace(kit.asking(explain=True), visible=mine)
    decision = await router.route(asked)
    assert went(decision) == ("medical", Reason.CLASSIFIED, "c")
    assert [(v.scores, v.declined, v.evidence) for v in decision.votes] == [
        ({"medical": 0.6}, False, ""),
        ({}, True, ""),
    ]
    for hint in ("legal", "cooking"):
        with pytest.raises(NotFound) as missing:
            await router.route(replace(kit.asking(domain=hint), visible=mine))
        assert missing.value.message.endswith("; there are medical")
    with pytest.raises(AdapterNotFound):
        await router.route(replace(kit.asking(adapter="adapters/legal"), visible=mine))
    decision = await router.route(replace(kit.asking(), visible=Visible()))
    assert decision.adapter is None


async def test_the_first_sure_one_decides_and_later_ones_are_not_asked(kit: Any, start: Start) -> None:
    unsure = kit.says("cheap", Scores({"medical": 0.4}))
    sure = kit.says("middle", Scores({"medical": 0.8}))
    never = kit.says("dear", Scores({"legal": 1.0}))
    seen: list[Vote] = []
    router = await start(
        kit.registered(never, priority=30),
        kit.registered(unsure, priority=10),
        kit.registered(sure, priority=20),
    )
    router.observe_votes(seen.append)
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


@pytest.mark.parametrize(
    ("answer", "expected", "confidence"),
    [
        (Scores({"legal": 0.45}), ("", Reason.ABSTAINED, "c"), 0.45),
        (None, ("", Reason.ABSTAINED, ""), 0.0),
        ("nonsense", ("", Reason.FALLBACK, ""), 0.0),
    ],
)
async def test_where_nobody_is_sure_the_base_answers(
    kit: Any, start: Start, answer: Any, expected: Any, confidence: float
) -> None:
    decision = await (await start(kit.registered(kit.says("c", answer)))).route(kit.asking())
    assert (went(decision), decision.confidence, decision.threshold) == (expected, confidence, 0.5)


async def test_without_classifiers_the_base_answers(kit: Any, start: Start) -> None:
    assert went(await (await start()).route(kit.asking())) == ("", Reason.FALLBACK, "")


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


@pytest.mark.parametrize("explain", [False, True])
async def test_lost_votes_that_the_decision_needed_are_in_it(kit: Any, start: Start, explain: bool) -> None:
    router = await start(
        kit.registered(kit.says("bad", "nonsense"), priority=1),
        kit.registered(kit.says("sure", Scores({"medical": 0.9})), priority=2),
        kit.registered(kit.says("late", "nonsense"), priority=3),
    )
    decision = await router.route(kit.asking(explain=explain))
    assert went(decision) == ("medical", Reason.CLASSIFIED, "sure")
    assert decision.votes_lost == (LostVote("bad", VoteError.INVALID),)
    named = await router.route(kit.asking(explain=explain, adapter="adapters/legal"))
    assert named.votes_lost == ()


async def test_a_classifier_that_cannot_work_here_loses_no_votes(
    kit: Any, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    class Seeing(kit.says):  # type: ignore[misc]
        needs = ("sight",)

        def bind(self, base: Any) -> None:
            raise AssertionError("never asked")

    router = await start(kit.registered(Seeing("eyes")), base_for=lambda timeout: FakeBase())
    decision = await router.route(kit.asking(explain=True))
    assert (decision.votes[0].error, decision.votes_lost, router.flaws) == ("disabled", (), [])
    assert not [record for record in caplog.records if "lost" in record.getMessage()]


async def test_lost_votes_are_in_the_log(kit: Any, start: Start, caplog: pytest.LogCaptureFixture) -> None:
    router = await start(kit.registered(kit.says("bad", "nonsense")))
    for _ in range(3):
        await router.route(kit.asking())
    assert caplog.messages.count("votes of classifier bad were lost: invalid 1") == 1
    await router.close()
    assert "votes of classifier bad were lost: invalid 2" in caplog.messages


async def test_an_open_breaker_is_a_flaw_with_the_reason(kit: Any, start: Start) -> None:
    router = await start(kit.registered(kit.says("bad", "nonsense")), kit.registered(kit.says("good")))
    assert router.flaws == []
    for _ in range(5):
        await router.route(kit.asking())
    assert router.flaws == ["classifier bad: the breaker is open, last failure: invalid scores"]


class Reads(Classifier):
    """Asks the base, and learns when the gate is open."""

    name = "reads"

    def __init__(self, gate: threading.Event, error: str = "") -> None:
        self.gate, self.error = gate, error

    def bind(self, base: Any) -> None:
        """It asks the base."""

    def fit(self, adapters: Any) -> None:
        self.gate.wait(10)
        if self.error:
            raise ValueError(self.error)

    def classify_batch(self, requests: Any) -> Any:
        return [Scores({"medical": 1.0}) for _ in requests]


async def test_a_start_waits_for_a_classifier_that_asks_the_base(kit: Any, start: Start) -> None:
    gate = threading.Event()
    asyncio.get_running_loop().call_later(0.3, gate.set)
    router = await start(kit.registered(Reads(gate)), base_for=lambda timeout: FakeBase())
    assert router.flaws == []
    assert went(await router.route(kit.asking())) == ("medical", Reason.CLASSIFIED, "reads")


async def test_a_start_does_not_wait_longer_than_the_setting_and_says_what_is_missing(
    kit: Any, start: Start
) -> None:
    gate = threading.Event()
    async with asyncio.timeout(5):
        router = await start(
            kit.registered(Reads(gate)), base_for=lambda timeout: FakeBase(), ready_seconds=0.1
        )
    assert router.flaws == ["classifier reads is not ready: it is learning"]
    assert (await router.route(kit.asking())).votes_lost == (LostVote("reads", VoteError.NOT_READY),)
    gate.set()
    await kit.eventually(lambda: not router.flaws)


async def test_a_failed_fit_is_a_flaw_and_holds_no_start_up(kit: Any, start: Start) -> None:
    gate = threading.Event()
    gate.set()
    async with asyncio.timeout(5):
        router = await start(kit.registered(Reads(gate, "no encoder")), base_for=lambda timeout: FakeBase())
    (flaw,) = router.flaws
    assert flaw.startswith("classifier reads is not ready: ValueError at")
    assert flaw.endswith("no encoder")


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


SHOUT = """
from router import hookimpl
from router.routing import Classifier, Scores

class Shout(Classifier):
    name = "shout"
    def classify_batch(self, requests):
        return [Scores({"legal": 1.0}) if r.text.isupper() else None for r in requests]

@hookimpl
def register_classifiers(register):
    register(Shout(), priority=100, timeout_ms=20)
"""


class Echo(Classifier):
    """Chooses the last adapter it was fitted to."""

    name = "echo"

    def __init__(self) -> None:
        self._last, self.fits = "", 0
        self.gate = threading.Event()
        self.gate.set()

    def fit(self, adapters: Sequence[AdapterProfile]) -> None:
        self.fits += 1
        self.gate.wait(10)
        self._last = adapters[-1].name if adapters else ""

    def classify_batch(self, requests: Any) -> Any:
        return [Scores({self._last: 1.0}) if self._last else None for _ in requests]


async def until(router: Router, request: Any, name: str) -> None:
    deadline = time.monotonic() + 5
    while (d := await router.route(request)).adapter is None or d.adapter.name != name:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def test_the_ten_line_plugin_votes_on_the_next_request(kit: Any, start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "plugins"
    folder.mkdir(mode=0o755)
    router = await start(catalog=kit.catalog([kit.medical, kit.legal]), host=PluginHost([folder]))
    assert (await router.route(kit.asking("SUE THEM"))).reason is Reason.FALLBACK
    (folder / "shout.py").write_text(SHOUT)
    decision = await router.route(kit.asking("SUE THEM"))
    assert (decision.adapter.name, decision.classifier) == ("legal", "shout")
    assert (await router.route(kit.asking("sue them"))).reason is Reason.ABSTAINED
    (folder / "shout.py").unlink()
    assert (await router.route(kit.asking("SUE THEM"))).reason is Reason.FALLBACK


async def test_a_plugin_that_must_learn_first_votes_on_the_next_request_too(
    kit: Any, start: Start, tmp_path: Path
) -> None:
    router = await start(catalog=kit.catalog([kit.legal]), host=PluginHost([tmp_path]))
    fitting = SHOUT.replace(
        "    def classify", "    def fit(self, adapters): self.n = len(adapters)\n    def classify"
    )
    (tmp_path / "shout.py").write_text(fitting)
    assert (await router.route(kit.asking("SUE"))).adapter.name == "legal"


async def test_a_changed_plugin_is_used_soon(kit: Any, start: Start, tmp_path: Path) -> None:
    path = tmp_path / "shout.py"
    path.write_text(SHOUT)
    router = await start(catalog=kit.catalog([kit.medical, kit.legal]), host=PluginHost([tmp_path]))
    assert (await router.route(kit.asking("A"))).adapter.name == "legal"
    path.write_text(SHOUT.replace("legal", "medical"))
    async with asyncio.timeout(3):
        await until(router, kit.asking("A"), "medical")


async def test_a_new_adapter_is_learned_before_it_is_used(kit: Any, start: Start) -> None:
    catalog, echo = kit.catalog([kit.medical]), Echo()
    router = await start(catalog=catalog, host=kit.host(kit.registered(echo)))
    assert (await router.route(kit.asking())).adapter.name == "medical"
    catalog.become(kit.medical, kit.translation)
    await until(router, kit.asking(), "translation")
    catalog.become()
    gone = await router.route(kit.asking())
    assert (gone.reason, gone.note) == (Reason.ABSTAINED, "no adapter is here")


async def test_a_slow_fit_does_not_hold_up_requests(kit: Any, start: Start) -> None:
    catalog, echo = kit.catalog([kit.medical]), Echo()
    router = await start(catalog=catalog, host=kit.host(kit.registered(echo)))
    echo.gate.clear()
    catalog.become(kit.medical, kit.legal)
    await kit.eventually(lambda: echo.fits == 2)
    assert (await router.route(kit.asking())).adapter.name == "medical"
    echo.gate.set()
    await until(router, kit.asking(), "legal")


async def test_a_reloaded_classifier_answers_with_its_old_self_until_it_has_learned(
    kit: Any, start: Start
) -> None:
    old, slow = Echo(), Echo()
    slow.gate.clear()
    host = kit.host(kit.registered(old))
    router = await start(catalog=kit.catalog([kit.medical]), host=host)
    successor = kit.registered(slow)
    host.become(successor)
    assert (await router.route(kit.asking())).reason is Reason.CLASSIFIED
    assert successor.health.calls == 0
    slow.gate.set()
    await kit.eventually(lambda: successor.health.state == "ready")
    assert (await router.route(kit.asking())).reason is Reason.CLASSIFIED
    assert successor.health.calls == 1


async def test_hints_know_a_new_adapter_at_once(kit: Any, start: Start) -> None:
    catalog = kit.catalog([kit.medical])
    echo = Echo()
    router = await start(catalog=catalog, host=kit.host(kit.registered(echo)))
    echo.gate.clear()
    catalog.become(kit.medical, kit.translation)
    decision = await router.route(kit.asking(task="translation"))
    assert (decision.adapter.name, decision.reason) == ("translation", Reason.HINT)
    echo.gate.set()


@pytest.mark.parametrize(
    ("resource", "expected"),
    [
        ("adapters/medical", ("medical", "")),
        ("adapters/a.b_c-1/versions/1.2.0-rc.1+x", ("a.b_c-1", "1.2.0-rc.1+x")),
    ],
)
def test_good_names(resource: str, expected: tuple[str, str]) -> None:
    assert parse_routed_adapter(resource) == expected


@pytest.mark.parametrize(
    "resource",
    [
        "medical",
        "adapters/",
        "adapters/a/",
        "adapters/a/versions/",
        "adapters/a/versions/../1",
        "adapters/../x",
        "adapters/A",
        "adapters/a\n",
        "adapters/a\0",
        "/adapters/a",
        "adapters/" + "a" * 64,
    ],
)
def test_bad_names_are_named(resource: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_routed_adapter(resource)
    assert caught.value.violations[0].field == "routing.adapter"


@given(st.text())
def test_any_text_is_parsed_or_refused(resource: str) -> None:
    try:
        name, version = parse_routed_adapter(resource)
    except InvalidRequest:
        return
    assert resource == f"adapters/{name}" + (f"/versions/{version}" if version else "")


# -- mixtures

MEDICAL, LEGAL = AdapterRef("medical", "1.0.0"), AdapterRef("legal", "2.1.0")
NAMED = (("adapters/medical", 0.7), ("adapters/legal/versions/2.1.0", 0.3))


async def test_a_mixture_is_what_the_caller_said_and_asks_nobody(kit: Any, start: Start) -> None:
    says = kit.says("c", Scores({"legal": 1.0}))
    router = await start(kit.registered(says))
    decision = await router.route(kit.asking(mixture=NAMED))
    assert decision.mixture == (MixturePart(MEDICAL, 0.7), MixturePart(LEGAL, 0.3))
    assert (decision.adapter, decision.reason, decision.confidence) == (None, Reason.EXPLICIT, 1.0)
    assert (decision.domain, decision.answered_by) == ("", ("mixture", ""))
    assert says.batches == []
    explained = await router.route(kit.asking(mixture=NAMED, explain=True))
    assert (explained.mixture, len(explained.votes)) == (decision.mixture, 1)


async def test_one_adapter_that_weighs_one_is_that_adapter(kit: Any, start: Start) -> None:
    router = await start()
    alone = await router.route(kit.asking(mixture=(("adapters/medical", 1.0),)))
    named = await router.route(kit.asking(adapter="adapters/medical"))
    assert (alone.adapter, alone.mixture, alone.digest) == (named.adapter, (), named.digest)
    half = await router.route(kit.asking(mixture=(("adapters/medical", 0.5),)))
    assert (half.adapter, half.mixture) == (None, (MixturePart(MEDICAL, 0.5),))


@pytest.mark.parametrize("again", ["adapters/medical", "adapters/medical/versions/1.0.0"])
def test_a_version_is_named_once(kit: Any, again: str) -> None:
    catalog = kit.catalog([kit.medical, kit.legal])
    with pytest.raises(InvalidRequest) as caught:
        resolve_mixture(catalog, (*NAMED, (again, 0.1)), EVERYTHING)
    (violation,) = caught.value.violations
    assert violation.field == "routing.mixture[2].adapter"
    assert violation.description.startswith("medical@1.0.0 is in the mixture already")


def test_two_versions_of_an_adapter_are_two(kit: Any) -> None:
    catalog = kit.catalog([kit.medical, AdapterProfile("medical", "2.0.0")])
    named = (("adapters/medical", 0.5), ("adapters/medical/versions/2.0.0", 0.5))
    assert [str(part) for part in resolve_mixture(catalog, named, EVERYTHING)[1]] == [
        "medical@1.0.0=0.5",
        "medical@2.0.0=0.5",
    ]


def test_a_hidden_part_is_as_one_that_nobody_has(kit: Any) -> None:
    catalog, visible = kit.catalog([kit.medical, kit.legal]), Visible(("medical",))
    messages = []
    for name in ("legal", "ghost"):
        with pytest.raises(AdapterNotFound) as caught:
            resolve_mixture(catalog, (("adapters/medical", 0.5), (f"adapters/{name}", 0.5)), visible)
        messages.append(caught.value.message.replace(name, "NAME"))
    assert messages[0] == messages[1]


# -- other thresholds


async def test_a_second_decision_asks_only_who_was_not_asked(kit: Any, start: Start) -> None:
    cheap, dear = kit.says("cheap", Scores({"medical": 0.6})), kit.says("dear", Scores({"legal": 0.9}))
    router = await start(kit.registered(cheap, priority=1), kit.registered(dear, priority=2))
    known: VotesByClassifier = {}
    first = await router.route(kit.asking(), None, known)
    assert first.adapter is not None
    assert (first.adapter.name, dear.batches) == ("medical", [])
    strict = await router.route(kit.asking(), 0.8, known)
    assert strict.adapter is not None
    assert (strict.adapter.name, strict.threshold) == ("legal", 0.8)
    one = await router.route(kit.asking(explain=True), 0.8, known)
    assert one.adapter == strict.adapter
    assert [v.classifier for v in one.votes] == ["cheap", "dear"]
    assert (cheap.batches, dear.batches) == ([1], [1])


async def test_the_routers_digest_follows_its_classifiers(kit: Any, start: Start) -> None:
    host_of = kit.registered(kit.says("a"), priority=1)
    router = await start(host_of)
    before = router.digest()
    assert router.digest() == before
    router._host.become(host_of, kit.registered(kit.says("b"), priority=2))  # type: ignore[attr-defined]
    assert router.digest() != before
