"""What counts as a passage, and that an adapter which answers from one is not chosen without."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from router.engine.base import BaseInfo
from router.engine.fake import FakeEngine
from router.passages import PASSAGE_WORDS, has_passage
from router.registry.registry import Registry, RegistryOptions
from router.routing import Scores
from router.routing.router import Router
from router.v1 import inference_pb2 as pb
from tests.registry.life import drop, eventually, weights
from tests.registry.tiny import BASE, write_adapter
from tests.routing.conftest import FakeHost, Says, registered
from tests.server.helpers import Connect, Start, ask

QUESTION = "When does the pool close?"
PASSAGE = (
    "The hotel has a sauna, a gym and a heated pool. The pool opens at seven in the morning and closes at "
    "nine in the evening, but at six on Sundays."
)
MANIFEST = '[adapter]\nname = "qa"\nversion = "1.0.0"\ntask = "question-answering"\n\n[generation]\n'


@pytest.mark.parametrize(
    ("text", "there"),
    [
        (QUESTION, False),
        ("word " * (PASSAGE_WORDS - 1), False),
        ("word " * PASSAGE_WORDS, True),
        ("one, two! " * 9 + "?" * 100, False),  # signs are no words
        ("Context: it rains\nQ: does it?", True),
        ("Context:\nQ: does it?", False),
        ("世界上最高的山是哪一座？", False),
        ("游泳池早上七点开放，晚上九点关闭，但星期天六点关闭。游泳池几点关闭？", True),
    ],
)
def test_a_passage_is_labelled_or_has_so_many_words(text: str, there: bool) -> None:
    assert has_passage(["short", text]) is there


class EngineOfTinyBase(FakeEngine):
    """One whose base has the layers of the adapters below."""

    @property
    def info(self) -> BaseInfo:
        return replace(super().info, sites=BASE.sites)


@pytest.fixture
async def at(start_server: Start, connect: Connect, tmp_path: Path) -> AsyncIterator[SimpleNamespace]:
    """A server with the adapters qa, which quotes a passage, and other; its classifier is sure of qa."""
    root = tmp_path / "adapters"
    write_adapter(root / "qa", None, weights(1.0), adapter_toml=MANIFEST + 'from_prompt = "quote"\n')
    drop(root, "other", "1.0.0", value=2.0)
    engine = EngineOfTinyBase()
    engine.start()
    options = RegistryOptions(state_dir=tmp_path / "state", settle_seconds=0.02, preload=False, gate="off")
    async with AsyncExitStack() as held:
        registry = Registry(engine, [root], options)
        held.push_async_callback(registry.close)
        await registry.start()
        await eventually(lambda: len(registry.profiles()) == 2)
        host: Any = FakeHost(registered(Says("sure", Scores({"qa": 0.95, "other": 0.05}))))
        router = Router(registry, host)
        await router.start()
        held.push_async_callback(router.close)
        yield connect(await start_server(engine=engine, registry=registry, router=router))


async def decided(at: SimpleNamespace, *texts: str, **routing: Any) -> pb.Decision:
    roles = (pb.ROLE_USER, pb.ROLE_ASSISTANT)
    turns = [pb.ChatMessage(role=roles[i % 2], text=text) for i, text in enumerate(texts)]
    chat = pb.Input(chat=pb.Chat(messages=turns))
    message = pb.RouteRequest(input=chat, routing=pb.Routing(explain=True, **routing))
    return (await at.inference.Route(message)).decision


async def test_it_is_not_chosen_without_one_and_the_explanation_says_so(at: SimpleNamespace) -> None:
    found = await decided(at, QUESTION)
    assert found.adapter == ""
    assert found.note.startswith("Not considered: qa, which answers from a passage; the request has none")
    assert found.votes[0].scores["qa"] == pytest.approx(0.95)


@pytest.mark.parametrize(
    "texts",
    [
        (f"{PASSAGE}\n{QUESTION}",),
        (f"Text: the pool closes at 8\nQ: {QUESTION}",),
        (PASSAGE, "I see.", QUESTION),
    ],
)
async def test_it_is_chosen_with_one_in_any_turn_of_the_user(
    at: SimpleNamespace, texts: tuple[str, ...]
) -> None:
    found = await decided(at, *texts)
    assert (found.adapter, found.note) == ("adapters/qa/versions/1.0.0", "")


@pytest.mark.parametrize("routing", [{"adapter": "adapters/qa"}, {"task": "question-answering"}])
async def test_a_caller_that_names_it_gets_it(at: SimpleNamespace, routing: dict[str, str]) -> None:
    answer = await at.inference.Generate(ask(QUESTION, routing=routing))
    assert answer.decision.adapter == "adapters/qa/versions/1.0.0"
