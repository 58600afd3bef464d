"""Conversations through a router: named ones, and chats that are sent whole."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from router.extensions.experiments.assignment import ArmAssignment, Assigner
from router.routing import Scores
from router.routing.in_force import CALIBRATED, RuleInForce
from router.routing.policy import Rule
from router.routing.router import IN_CONTEXT, Router
from router.types import Turn, Visible
from tests.extensions.experiments.made import running

Start = Callable[..., Awaitable[Router]]


def by_word(request: Any) -> Scores | None:
    """Sure of the adapter that the text names first; declines a text that names none."""
    named = [name for name in ("legal", "medical") if name in request.text]
    return Scores({min(named, key=request.text.index): 0.9}) if named else None


async def turn(router: Router, request: Any) -> tuple[str, str, str]:
    """Route a request that is answered."""
    decision = await router.route(request)
    router.answered(request, decision)
    return decision.adapter.name if decision.adapter else "", decision.continuity, decision.previous


async def test_a_named_conversation_goes_on_from_turn_to_turn(kit: Any, start: Start) -> None:
    router = await start(kit.registered(kit.says("c", by_word)))
    asking = kit.asking
    assert await turn(router, asking("legal?", conversation="a")) == ("legal", "initial", "")
    assert await turn(router, asking("and?", conversation="a")) == ("legal", "kept", "legal")
    assert await turn(router, asking("and?", conversation="b")) == ("", "initial", "")
    assert await turn(router, asking("medical", conversation="a")) == ("medical", "switched", "legal")
    assert await turn(router, asking("1", conversation="a")) == ("medical", "kept", "medical")
    assert await turn(router, asking("2", conversation="a")) == ("medical", "kept", "medical")
    assert await turn(router, asking("3", conversation="a")) == ("", "initial", "")
    assert await turn(router, asking("4", conversation="a")) == ("", "initial", "")


async def test_a_conversation_is_its_tenants_own(kit: Any, start: Start) -> None:
    router = await start(kit.registered(kit.says("c", by_word)))
    await turn(router, replace(kit.asking("legal?", conversation="a"), tenant="one"))
    assert await turn(router, replace(kit.asking("and?", conversation="a"), tenant="two")) == (
        "",
        "initial",
        "",
    )
    assert (await turn(router, replace(kit.asking("and?", conversation="a"), tenant="one")))[0] == "legal"


async def test_fresh_begins_a_conversation_anew(kit: Any, start: Start) -> None:
    router = await start(kit.registered(kit.says("c", by_word)))
    await turn(router, kit.asking("legal?", conversation="a"))
    assert await turn(router, kit.asking("and?", conversation="a", fresh=True)) == ("", "initial", "")
    assert await turn(router, kit.asking("and?", conversation="a")) == ("", "initial", "")


async def test_what_the_caller_names_overrides_a_conversation_which_goes_on_from_there(
    kit: Any, start: Start
) -> None:
    router = await start(kit.registered(kit.says("c", by_word)))
    await turn(router, kit.asking("legal?", conversation="a"))
    named = kit.asking("and?", conversation="a", adapter="adapters/medical")
    assert await turn(router, named) == ("medical", "", "")
    assert await turn(router, kit.asking("and?", conversation="a")) == ("medical", "kept", "medical")
    hinted = kit.asking("and?", conversation="a", task="translation")
    assert await turn(router, hinted) == ("translation", "", "")


async def test_an_adapter_that_the_caller_may_not_know_of_is_not_kept(kit: Any, start: Start) -> None:
    router = await start(kit.registered(kit.says("c", by_word)))
    await turn(router, kit.asking("legal?", conversation="a"))
    other = replace(kit.asking("and?", conversation="a"), visible=Visible(("medical",)))
    assert await turn(router, other) == ("", "initial", "")


async def test_what_is_only_looked_at_does_not_move_a_conversation(kit: Any, start: Start) -> None:
    router = await start(kit.registered(kit.says("c", by_word)))
    await turn(router, kit.asking("legal?", conversation="a"))
    await router.route(kit.asking("medical?", conversation="a"))
    assert await turn(router, kit.asking("and?", conversation="a")) == ("legal", "kept", "legal")


def chat(kit: Any, *texts: str, **hints: Any) -> Any:
    """A chat as a whole: users and assistant speak in turn."""
    turns = [Turn("user" if i % 2 == 0 else "assistant", text) for i, text in enumerate(texts)]
    return replace(kit.asking(**hints), turns=tuple(turns))


async def test_a_chat_that_is_sent_whole_is_routed_alike_everywhere(kit: Any, start: Start) -> None:
    asked = chat(kit, "legal?", "1", "and?")
    first, other = [await start(kit.registered(kit.says("c", by_word))) for _ in range(2)]
    await turn(first, chat(kit, "legal?"))
    assert await turn(first, asked) == await turn(other, asked) == ("legal", "kept", "legal")


async def test_an_earlier_turn_is_asked_about_once(kit: Any, start: Start) -> None:
    says = kit.says("c", by_word)
    router = await start(kit.registered(says))
    await turn(router, chat(kit, "legal?"))
    assert len(says.batches) == 1
    await turn(router, chat(kit, "legal?", "1", "medical?"))
    assert len(says.batches) == 2
    await turn(router, chat(kit, "legal?", "1", "medical?", "2", "legal!"))
    assert len(says.batches) == 3


async def test_what_was_found_before_adapters_changed_holds_no_longer(kit: Any, start: Start) -> None:
    catalog = kit.catalog([kit.medical, kit.legal])
    says = kit.says("c", by_word)
    router = await start(kit.registered(says), catalog=catalog)
    await turn(router, chat(kit, "legal?"))
    catalog.become(kit.medical)
    await kit.eventually(lambda: len(router._catalog_view.learned) == 1)
    assert await turn(router, chat(kit, "legal?", "1", "and?")) == ("", "initial", "")


async def test_a_lost_vote_on_an_earlier_turn_is_asked_for_again(kit: Any, start: Start) -> None:
    broken = [True]

    def answer(request: Any) -> Scores | None:
        if broken[0]:
            raise RuntimeError("broken")
        return by_word(request)

    router = await start(kit.registered(kit.says("c", answer)))
    assert (await turn(router, chat(kit, "legal?", "1", "and?")))[0] == ""
    broken[0] = False
    assert (await turn(router, chat(kit, "legal?", "1", "and?")))[0] == "legal"


async def test_the_request_says_how_its_conversation_goes_on(kit: Any, start: Start) -> None:
    router = await start(kit.registered(kit.says("c", by_word)))
    asked = chat(kit, "legal?", "1", "and?")
    assert await turn(router, asked) == ("legal", "kept", "legal")
    assert await turn(router, chat(kit, "legal?", "1", "and?", continuity="none")) == ("", "", "")
    adaptive = chat(kit, "legal?", "1", "and?", continuity="adaptive")
    assert await turn(router, adaptive) == ("legal", "kept", "legal")
    sticky = chat(kit, "legal?", "1", "medical?", continuity="sticky")
    assert await turn(router, sticky) == ("legal", "kept", "legal")


async def test_classifiers_get_the_very_request_of_a_single_turn(kit: Any, start: Start) -> None:
    seen: list[Any] = []
    router = await start(kit.registered(kit.says("c", seen.append)))
    asked = kit.asking("torts?")
    await router.route(asked)
    assert seen == [asked]


async def test_the_calibration_says_when_more_than_the_turns_text_decided(kit: Any, start: Start) -> None:
    catalog = kit.catalog([kit.medical, kit.legal])
    rule = RuleInForce(Rule(), kit.calibration())
    router = await start(kit.registered(kit.says("c", by_word)), catalog=catalog, rule=rule)
    assert (await router.route(kit.asking("legal?"))).calibration == CALIBRATED
    kept = await router.route(chat(kit, "legal?", "1", "and?"))
    assert (kept.continuity, kept.calibration) == ("kept", IN_CONTEXT)


async def test_a_units_arm_stays_within_a_conversation(kit: Any, start: Start) -> None:
    router = await start(kit.registered(kit.says("c", by_word)))
    assigner = Assigner()
    assigner.use((running(),))
    arms = set()
    for asked in (chat(kit, "medical?", unit="ann"), chat(kit, "medical?", "1", "and?", unit="ann")):
        found = assigner.assign(asked, await router.route(asked))
        assert isinstance(found, ArmAssignment)
        arms.add(found.arm.name)
    assert len(arms) == 1
