"""Answers with an activated LoRA are PEFT's, no matter which request computed the prefix."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from router.engine import native, torch_engine
from router.engine.activation import last_occurrence
from router.engine.native.build import cpu_levels
from router.engine.ops import BLOCK
from router.engine.torch_engine import TorchEngine
from router.errors import EngineFailed, NotActivated
from tests.engine import tiny

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # the first run compiles

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CALL = (250, 7, 250)
ADAPTERS: dict[str, dict[str, Any]] = {
    "plain": {"target_modules": ALL},
    "late": {"target_modules": ALL, "alora_invocation_tokens": list(CALL)},
    "other": {"r": 16, "target_modules": ["v_proj", "down_proj"], "alora_invocation_tokens": list(CALL)},
    "one": {"r": 4, "target_modules": ALL, "alora_invocation_tokens": [251]},
}
NEW = 10
Tuned = dict[str, tuple[Path, Any]]


def text(length: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(240) for _ in range(length)]  # no token of an invocation


def prompts() -> dict[str, list[int]]:
    """For "late", "other" and "one" alike: 251 comes where their tokens begin, and before."""
    return {
        "at the end": [*text(45, 0), 251, *CALL],
        "in the middle": [*text(20, 1), *CALL, 251, *text(30, 2)],
        "several times": [*text(9, 3), *CALL, 251, *text(11, 4), *CALL, 251, *text(5, 5)],
        "overlapping itself": [*text(17, 6), 250, 7, 250, 7, 250, 251, 251],
        "at the very beginning": [*CALL, 251, *text(22, 7)],
        "at a block's beginning": [*text(2 * BLOCK, 8), *CALL, 251],
        "across blocks": [*text(2 * BLOCK - 1, 9), *CALL, 251, *text(2, 10)],
        "and nothing else": [*CALL, 251],
    }


def greedy(tuned: Any, tokens: Sequence[int], found: Sequence[int], calls: Sequence[int]) -> list[int]:
    """As `tiny.greedy`, of a PEFT model whose adapter acts from the last `calls` of the prompt on."""
    more: dict[str, Any] = {}
    if calls:
        more["alora_offsets"] = [len(tokens) + len(found) - last_occurrence(tokens, tuple(calls))]
    ids = torch.tensor([[*tokens, *found]])
    with torch.no_grad():
        best = tuned(ids, logits_to_keep=len(found) + 1, **more).logits[0].argmax(-1).tolist()
    if len(found) < NEW and best[len(found)] != tiny.SHAPE["eos_token_id"]:
        return [*best[: len(found)], best[len(found)]]
    return list(best[: len(found)])


def calls_of(name: str) -> list[int]:
    return list(ADAPTERS[name].get("alora_invocation_tokens", ()))


# Every path with one architecture; the other architecture has operations of its own.
PATHS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    *(("llama", {"native": level}) for level in cpu_levels()),
    ("llama", {"path": "generic"}),
    ("llama", {"max_step_tokens": 16}),
    ("llama", {"max_step_tokens": 19, "native": "best"}),
    ("llama", {"prefix_cache": False}),
    ("qwen3", {}),
    ("qwen3", {"native": "best"}),
]


@pytest.fixture
def kind(request: pytest.FixtureRequest) -> str:
    return str(getattr(request, "param", "llama"))


@pytest.fixture(scope="module")
def adapters_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Tuned]:
    @cache
    def saved(kind: str) -> Tuned:
        root = tmp_path_factory.mktemp(kind)
        return {
            name: (root / name, tiny.save_adapter(kind, root / name, seed, **config))
            for seed, (name, config) in enumerate(ADAPTERS.items())
        }

    return saved


@pytest.fixture
def tuned(kind: str, adapters_of: Callable[[str], Tuned]) -> Tuned:
    return adapters_of(kind)


@pytest.fixture
def made(kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[TorchEngine]:
    settings = dict(request.param)
    if settings.pop("path", "") == "generic":
        monkeypatch.setattr(torch_engine, "why_not_packed", lambda *_: "the test wants it")
    if (level := settings.get("native", "best")) != "best":
        monkeypatch.setattr(native, "cpu_levels", lambda: [level])
    engine = tiny.engine(kind, **(settings | {"native": "native" in settings}))
    yield engine
    engine.close()


async def load(made: TorchEngine, tuned: Tuned) -> dict[str, str | None]:
    digests: dict[str, str | None] = {"base": None}
    for name, (folder, _) in tuned.items():
        artifact = tiny.artifact(folder, made)
        await made.load(artifact)
        digests[name] = artifact.digest
    return digests


@pytest.mark.parametrize(
    ("kind", "made"), PATHS, indirect=True, ids=["-".join(map(str, [k, *p.values()])) for k, p in PATHS]
)
async def test_a_mixed_batch_equals_peft_alone(made: TorchEngine, kind: str, tuned: Tuned) -> None:
    digests = await load(made, tuned)
    models = {name: model for name, (_, model) in tuned.items()}
    work = [(name, tokens) for tokens in prompts().values() for name in digests]
    random.Random(0).shuffle(work)
    answers = await asyncio.gather(
        *(tiny.answer(made, tokens, digests[name], max_tokens=NEW) for name, tokens in work)
    )
    again = [await tiny.answer(made, tokens, digests[name], max_tokens=NEW) for name, tokens in work]
    for (name, tokens), (ids, _), (later, _) in zip(work, answers, again, strict=True):
        if name == "base":
            expected = tiny.greedy(tiny.model(kind), tokens, ids, NEW, frozenset({257}))
        else:
            expected = greedy(models[name], tokens, ids, calls_of(name))
        assert ids == expected, (name, tokens)
        assert later == ids, (name, tokens)


@pytest.mark.parametrize("fast", [False, True], ids=["torch", "native"])
async def test_what_others_read_serves_and_changes_nothing(fast: bool, kind: str, tuned: Tuned) -> None:
    made = tiny.engine(kind, native=fast)
    try:
        digests = await load(made, tuned)

        async def ask(name: str, tokens: list[int]) -> tuple[list[int], int]:
            ids, end = await tiny.answer(made, tokens, digests[name], max_tokens=NEW)
            if name != "base":
                assert ids == greedy(tuned[name][1], tokens, ids, calls_of(name)), name
            return ids, end.usage.cached_tokens

        for number, tokens in enumerate(prompts().values()):
            before = whole(last_occurrence(tokens, CALL))
            orders = [["base", "late", "other"], ["late", "other", "base"], ["other", "base", "late"]]
            first, second, third = orders[number % 3]
            unlike = [number, *tokens[1:]] if before else tokens  # no two begin alike
            answers = {first: await ask(first, unlike)}
            answers |= {second: await ask(second, unlike), third: await ask(third, unlike)}
            assert [found for _, found in answers.values()] == [0, before, before]
            for name, (ids, _) in answers.items():
                assert await ask(name, unlike) == (ids, whole(len(tokens) - 1))
            assert (await ask("plain", unlike))[1] == 0
    finally:
        made.close()


def whole(tokens: int) -> int:
    """Those in full blocks."""
    return tokens // BLOCK * BLOCK


async def test_a_conversation_goes_on(kind: str, tuned: Tuned) -> None:
    """What the adapter said before another invocation is the base's to read again."""
    made = tiny.engine(kind)
    try:
        digests = await load(made, tuned)
        opening = [*text(40, 20), *CALL]
        ids, _ = await tiny.answer(made, opening, digests["late"], max_tokens=NEW, min_tokens=NEW)
        for more, known in (([*ids, *text(20, 21)], 48), ([*ids, *text(20, 21), *CALL], 32)):
            tokens = [*opening, *more]
            later, end = await tiny.answer(made, tokens, digests["late"], max_tokens=NEW)
            assert end.usage.cached_tokens == known
            assert later == greedy(tuned["late"][1], tokens, later, CALL)
    finally:
        made.close()


@pytest.mark.parametrize("prefix_cache", [False, True])
async def test_it_is_the_same_after_others_pushed_it_aside(
    prefix_cache: bool, kind: str, tuned: Tuned
) -> None:
    made = tiny.engine(kind, cache_tokens=256, prefix_cache=prefix_cache, max_step_tokens=24)
    try:
        digests = await load(made, tuned)
        names = ["late", "other", "late", "plain", "base", "one"]
        work = [([*text(30, i), 251, *CALL, *text(i, 30 + i)], digests[name]) for i, name in enumerate(names)]

        async def ask(tokens: list[int], digest: str | None) -> list[int]:
            return (await tiny.answer(made, tokens, digest, max_tokens=60, min_tokens=60))[0]

        alone = [await ask(*asked) for asked in work]
        before = made.status().preemptions
        assert await asyncio.gather(*(ask(*asked) for asked in work)) == alone
        assert made.status().preemptions > before
    finally:
        made.close()


async def test_pefts_own_generation_is_the_same(tuned: Tuned, kind: str) -> None:
    made = tiny.engine(kind)
    try:
        digests = await load(made, tuned)
        for name in ("late", "one"):
            for tokens in prompts().values():
                found, _ = await tiny.answer(made, tokens, digests[name], max_tokens=NEW)
                expected = tiny.reference(tuned[name][1], tokens, NEW)
                assert found == [t for t in expected if t != tiny.SHAPE["eos_token_id"]]
    finally:
        made.close()


async def test_a_prompt_without_the_invocation_is_refused_at_once(kind: str, tuned: Tuned) -> None:
    made = tiny.engine(kind)
    try:
        digests = await load(made, tuned)
        for tokens in ([1, 2, 3], [250, 7], [*text(60, 0)]):
            with pytest.raises(NotActivated, match="250, 7, 250"):
                await tiny.answer(made, tokens, digests["late"], max_tokens=1)
            assert (await tiny.answer(made, tokens, digests["plain"], max_tokens=1, min_tokens=1))[0]
    finally:
        made.close()


async def test_a_step_that_fails_tells_such_a_row_once(
    kind: str, tuned: Tuned, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tiny.engine(kind)
    try:
        digests = await load(made, tuned)
        loop = made._loop
        assert loop is not None
        sent: list[Any] = []
        send, run = loop._send, loop._runner.run
        monkeypatch.setattr(loop, "_send", lambda events: (sent.extend(events), send(events)))

        def failing(chunks: Any) -> Any:
            assert [(c.adapter is None, c.count) for c in chunks] == [(True, 20), (False, 3)]
            monkeypatch.setattr(loop._runner, "run", run)
            raise RuntimeError("a fault")

        monkeypatch.setattr(loop._runner, "run", failing)
        tokens = [*text(20, 50), *CALL]
        with pytest.raises(EngineFailed):
            await tiny.answer(made, tokens, digests["late"], max_tokens=2)
        assert [type(event) for _, event in sent] == [EngineFailed]
        assert (await tiny.answer(made, tokens, digests["late"], max_tokens=2, min_tokens=2))[0]
    finally:
        made.close()
