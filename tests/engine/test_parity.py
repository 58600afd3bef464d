"""Greedy answers equal PEFT alone with that adapter, token for token, whatever the batch around it.

An activated LoRA acts late in a prompt: its answers are PEFT's, no matter which request computed the prefix.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from router.engine import native, torch_engine
from router.engine.base import Job, last_occurrence
from router.engine.native.build import cpu_levels
from router.engine.ops import BLOCK
from router.engine.torch_engine import TorchEngine
from router.errors import EngineFailed, NotActivated
from router.types import SamplingParams
from tests.engine import tiny

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # the first run compiles

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CALL = (250, 7, 250)
ADAPTERS: dict[str, dict[str, Any]] = {
    "a": {"r": 4, "target_modules": ALL},
    "a2": {"r": 64, "lora_alpha": 16, "target_modules": ALL},
    "rslora": {"r": 16, "use_rslora": True, "target_modules": ALL},
    "patterns": {
        "r": 8,
        "target_modules": ALL,
        "rank_pattern": {"q_proj": 2, "model.layers.1.mlp.down_proj": 12},
        "alpha_pattern": {"v_proj": 40, "model.layers.0.self_attn.o_proj": 3},
    },
    "qv": {"r": 6, "target_modules": ["q_proj", "v_proj"]},
    "one-layer": {"r": 5, "target_modules": ["up_proj"], "layers_to_transform": [1]},
}
ACTIVATED: dict[str, dict[str, Any]] = {
    "late": {"target_modules": ALL, "alora_invocation_tokens": list(CALL)},
    "other": {"r": 16, "target_modules": ["v_proj", "down_proj"], "alora_invocation_tokens": list(CALL)},
    "one": {"r": 4, "target_modules": ALL, "alora_invocation_tokens": [251]},
}
FUSED = dict.fromkeys(ALL[:3], "qkv_proj") | dict.fromkeys(ALL[4:6], "gate_up_proj")  # Phi's names
NEW = 12
Tuned = dict[str, tuple[Path, Any]]
ENDS = frozenset({tiny.SHAPE["eos_token_id"]})


def prompts(count: int, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(256) for _ in range(rng.randint(1, 60))] for _ in range(count)]


def text(length: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(240) for _ in range(length)]  # no token of an invocation


def invoking() -> dict[str, list[int]]:
    """Prompts for all activated adapters alike: 251 comes where their tokens begin, and before."""
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


def calls_of(name: str) -> tuple[int, ...]:
    return tuple(ACTIVATED.get(name, {}).get("alora_invocation_tokens", ()))


def greedy(tuned: Any, tokens: Sequence[int], found: Sequence[int], calls: tuple[int, ...]) -> list[int]:
    """As `tiny.greedy`, of a PEFT model whose adapter acts from the last `calls` of the prompt on."""
    if not calls:
        return tiny.greedy(tuned, tokens, found, NEW, ENDS)
    offsets = [len(tokens) + len(found) - last_occurrence(tokens, calls)]
    with torch.no_grad():
        seen = tuned(torch.tensor([[*tokens, *found]]), logits_to_keep=len(found) + 1, alora_offsets=offsets)
    best: list[int] = seen.logits[0].argmax(-1).tolist()
    own = best[: len(found)]
    return own if len(found) == NEW or best[len(found)] in ENDS else [*own, best[len(found)]]


# Every path with one architecture; the others have operations of their own.
PATHS: list[tuple[str, dict[str, Any]]] = [
    *(
        (kind, {})
        for kind in ("llama", "llama-bias", "qwen2", "qwen3", "qwen3-moe", "phi3", "gemma2", "gemma3")
    ),
    *(
        (kind, {"native": "best"})
        for kind in ("llama-bias", "qwen2", "qwen3", "qwen3-moe", "phi3", "gemma2", "gemma3")
    ),
    *(("llama", {"native": level}) for level in cpu_levels()),
    ("llama", {"path": "generic"}),
    ("qwen3", {"path": "generic"}),
    ("gemma3", {"path": "generic"}),
    ("gemma3", {"path": "generic", "native": "best"}),
    ("llama", {"max_step_tokens": 16}),
    ("llama", {"max_step_tokens": 19, "native": "best"}),
    ("gemma3", {"max_step_tokens": 19, "native": "best"}),
    ("llama", {"prefix_cache": False}),
]


@pytest.fixture
def kind(request: pytest.FixtureRequest) -> str:
    return str(getattr(request, "param", "llama"))


@pytest.fixture(scope="module")
def adapters_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Tuned]:
    @cache
    def saved(kind: str) -> Tuned:
        root = tmp_path_factory.mktemp(kind)
        made = {}
        for seed, (name, config) in enumerate((ADAPTERS | ACTIVATED).items()):
            made[name] = root / name, tiny.save_adapter(kind, root / name, seed, **named(kind, config))
        return made

    return saved


def named(kind: str, config: dict[str, Any]) -> dict[str, Any]:
    """The adapter's config with the names that this base's linear layers have."""
    if kind == "qwen3-moe":  # experts are no linear layers, and take no adapter
        attention = [name for name in config["target_modules"] if name in ALL[:4]] or ["o_proj"]
        ranks = {name: rank for name, rank in config.get("rank_pattern", {}).items() if "mlp" not in name}
        return config | {"target_modules": attention, "rank_pattern": ranks}
    if kind != "phi3":
        return config
    patterns = ("rank_pattern", "alpha_pattern")
    renamed = {key: {FUSED.get(k, k): v for k, v in config[key].items()} for key in patterns if key in config}
    return config | renamed | {"target_modules": sorted({FUSED.get(n, n) for n in config["target_modules"]})}


@pytest.fixture
def tuned(kind: str, adapters_of: Callable[[str], Tuned]) -> Tuned:
    return adapters_of(kind)


@pytest.fixture
def made(kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[TorchEngine]:
    settings = dict(getattr(request, "param", {}))
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


@asynccontextmanager
async def served(
    kind: str, tuned: Tuned, **settings: Any
) -> AsyncIterator[tuple[TorchEngine, dict[str, Any]]]:
    """An engine of its own with all adapters, and their digests."""
    made = tiny.engine(kind, **settings)
    try:
        yield made, await load(made, tuned)
    finally:
        made.close()


@pytest.mark.parametrize(
    ("kind", "made"), PATHS, indirect=True, ids=["-".join(map(str, [k, *p.values()])) for k, p in PATHS]
)
async def test_a_mixed_batch_equals_peft_alone(made: TorchEngine, kind: str, tuned: Tuned) -> None:
    digests = await load(made, tuned)
    models = {name: model for name, (_, model) in tuned.items()} | {"base": tiny.model(kind)}
    plain = ["base", *ADAPTERS]
    work = [(plain[i % len(plain)], tokens) for i, tokens in enumerate(prompts(16))]
    work += [(name, tokens) for tokens in invoking().values() for name in ("base", "a", *ACTIVATED)]
    random.Random(0).shuffle(work)
    answers = await asyncio.gather(
        *(tiny.answer(made, tokens, digests[name], max_tokens=NEW) for name, tokens in work),
        churn(made, tuned),
        cancelled_neighbours(made, [digests[name] for name in plain]),
    )
    again = [await tiny.answer(made, tokens, digests[name], max_tokens=NEW) for name, tokens in work]
    for (name, tokens), result, (later, _) in zip(work, answers, again, strict=False):
        assert result is not None
        assert result[0] == greedy(models[name], tokens, result[0], calls_of(name)), (name, tokens)
        assert later == result[0], (name, tokens)


async def churn(made: TorchEngine, tuned: Any) -> None:
    """Load and unload another adapter while the batch runs."""
    artifact = tiny.artifact(tuned["qv"][0], made)
    for i in range(5):
        other = type(artifact)("other", str(i), f"other-{i}", artifact.sites)
        await made.load(other)
        await tiny.answer(made, [1, 2, 3], other.digest, max_tokens=2)
        assert await made.unload(other.digest) > 0


async def cancelled_neighbours(made: TorchEngine, digests: Sequence[str | None]) -> None:
    """Rows that leave in the middle."""
    for digest in digests:
        stream = made.submit(Job("gone", list(range(20)), SamplingParams(max_tokens=200), digest))
        async for _ in stream:
            break
        stream.cancel()


# -- Activated adapters: the prefix before the invocation is the base's.


@pytest.mark.parametrize("fast", [False, True], ids=["torch", "native"])
async def test_what_others_read_serves_and_changes_nothing(fast: bool, kind: str, tuned: Tuned) -> None:
    async with served(kind, tuned, native=fast) as (made, digests):

        async def ask(name: str, tokens: list[int]) -> tuple[list[int], int]:
            ids, end = await tiny.answer(made, tokens, digests[name], max_tokens=NEW)
            if name != "base":
                assert ids == greedy(tuned[name][1], tokens, ids, calls_of(name)), name
            return ids, end.usage.cached_tokens

        for number, tokens in enumerate(invoking().values()):
            before = whole(last_occurrence(tokens, CALL))
            orders = [["base", "late", "other"], ["late", "other", "base"], ["other", "base", "late"]]
            first, second, third = orders[number % 3]
            unlike = [number, *tokens[1:]] if before else tokens  # no two begin alike
            answers = {first: await ask(first, unlike)}
            answers |= {second: await ask(second, unlike), third: await ask(third, unlike)}
            assert [found for _, found in answers.values()] == [0, before, before]
            for name, (ids, _) in answers.items():
                assert await ask(name, unlike) == (ids, whole(len(tokens) - 1))
            assert (await ask("a", unlike))[1] == 0


def whole(tokens: int) -> int:
    """Those in full blocks."""
    return tokens // BLOCK * BLOCK


async def test_a_conversation_goes_on(kind: str, tuned: Tuned) -> None:
    """What the adapter answered before another invocation is the base's to read again."""
    async with served(kind, tuned) as (made, digests):
        opening = [*text(40, 20), *CALL]
        ids, _ = await tiny.answer(made, opening, digests["late"], max_tokens=NEW, min_tokens=NEW)
        for more, known in (([*ids, *text(20, 21)], 48), ([*ids, *text(20, 21), *CALL], 32)):
            tokens = [*opening, *more]
            later, end = await tiny.answer(made, tokens, digests["late"], max_tokens=NEW)
            assert end.usage.cached_tokens == known
            assert later == greedy(tuned["late"][1], tokens, later, CALL)


@pytest.mark.parametrize(
    ("kind", "prefix_cache"), [("llama", False), ("llama", True), ("gemma3", True)], indirect=["kind"]
)
async def test_it_is_the_same_after_it_was_preempted(prefix_cache: bool, kind: str, tuned: Tuned) -> None:
    small = {"cache_tokens": 256, "prefix_cache": prefix_cache, "max_step_tokens": 24}
    async with served(kind, tuned, **small) as (made, digests):
        names = ["late", "other", "late", "a", "base", "one"]
        work = [([*text(30, i), 251, *CALL, *text(i, 30 + i)], digests[name]) for i, name in enumerate(names)]

        async def ask(tokens: list[int], digest: str | None) -> list[int]:
            return (await tiny.answer(made, tokens, digest, max_tokens=60, min_tokens=60))[0]

        alone = [await ask(*one) for one in work]
        before = made.status().preemptions
        assert await asyncio.gather(*(ask(*one) for one in work)) == alone
        assert made.status().preemptions > before


async def test_a_prompt_without_the_invocation_is_refused_at_once(kind: str, tuned: Tuned) -> None:
    async with served(kind, tuned) as (made, digests):
        for tokens in ([1, 2, 3], [250, 7], [*text(60, 0)]):
            with pytest.raises(NotActivated, match="250, 7, 250"):
                await tiny.answer(made, tokens, digests["late"], max_tokens=1)
            assert (await tiny.answer(made, tokens, digests["a"], max_tokens=1, min_tokens=1))[0]


async def test_a_step_that_fails_ends_such_a_row_once(
    kind: str, tuned: Tuned, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served(kind, tuned) as (made, digests):
        loop = made._loop
        assert loop is not None
        sent: list[Any] = []
        send, run = loop._send, loop._runner.run
        monkeypatch.setattr(loop, "_send", lambda events: (sent.extend(events), send(events)))

        def failing(chunks: Any, pooling: bool) -> Any:
            assert [(c.adapter is None, c.count) for c in chunks] == [(True, 20), (False, 3)]
            monkeypatch.setattr(loop._runner, "run", run)
            raise RuntimeError("a fault")

        monkeypatch.setattr(loop._runner, "run", failing)
        tokens = [*text(20, 50), *CALL]
        with pytest.raises(EngineFailed):
            await tiny.answer(made, tokens, digests["late"], max_tokens=2)
        assert [type(event) for _, event in sent] == [EngineFailed]
        assert (await tiny.answer(made, tokens, digests["late"], max_tokens=2, min_tokens=2))[0]
