"""Mixtures: the sum of what their parts add, as PEFT sums it ("cat"), in any batch."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from router.engine import torch_engine
from router.engine.base import AdapterArtifact, Job
from router.engine.lora import HostStore, PackedAdapter, mix_adapters, pack_adapter
from router.engine.native import NativeOps
from router.engine.native.build import cpu_levels, load_module
from router.engine.torch_engine import TorchEngine
from router.engine.torch_ops import TorchOps
from router.errors import FailedPrecondition
from router.types import SamplingParams
from tests.engine import tiny
from tests.engine.test_lora import GROUPS, delta
from tests.engine.test_parity import ADAPTERS, ENDS, prompts

SHAPES = {"q": (24, 20), "k": (24, 10), "v": (24, 10), "o": (20, 24), "down": (10, 24)}
PARTS = {"one": {"q": 3, "v": 2, "o": 5}, "two": {"q": 4, "down": 1}, "three": {"o": 2}}
NEW = 12


@pytest.fixture(params=["torch", *cpu_levels()])
def ops(request: pytest.FixtureRequest) -> TorchOps:
    """All implementations at hand; the first run compiles."""
    return TorchOps() if request.param == "torch" else NativeOps(load_module(request.param))


def artifact_of(name: str) -> AdapterArtifact:
    sites = {s: delta(r, *SHAPES[s], seed=len(name) + i) for i, (s, r) in enumerate(PARTS[name].items())}
    return AdapterArtifact(name, "1", name, sites)


def store(ops: TorchOps, dtype: torch.dtype) -> HostStore:
    host = HostStore()
    for name in PARTS:
        host.put(pack_adapter(artifact_of(name), GROUPS, ops, dtype, pin=False))
    return host


def change(adapter: PackedAdapter, ops: TorchOps) -> list[torch.Tensor | None]:
    """What it adds to each site group's weights, [layers, outputs, inputs] in float64."""
    changes: list[torch.Tensor | None] = []
    for pair, rank, group in zip(adapter.weights, adapter.ranks, GROUPS, strict=True):
        if pair is None:
            changes.append(None)
            continue
        a = ops.unpack_a(pair[0], len(group.names) * rank, group.in_features).double()
        b = ops.unpack_b(pair[1], group.out_offsets[-1], rank).double()
        rows = a.reshape(len(group.names), rank, -1)
        changes.append(torch.einsum("or,kri->koi", b, rows))
    return changes


def mixture(*parts: tuple[str, float]) -> AdapterArtifact:
    return AdapterArtifact("mixture", "", "mixture", {}, parts=parts)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_was_packed_can_be_had_back(ops: TorchOps, dtype: torch.dtype) -> None:
    for rows, width in ((2, 8), (12, 24), (40, 30), (48, 7)):
        made = torch.randn(rows, width).to(dtype)
        assert torch.equal(ops.unpack_a(ops.pack_a(made), rows, width), made)
    for rows, rank in ((3, 2), (40, 6), (64, 8), (100, 4)):
        made = torch.randn(rows, rank).to(dtype)
        assert torch.equal(ops.unpack_b(ops.pack_b(made), rows, rank), made)


@pytest.mark.timeout(600)
def test_a_mixture_is_the_weighted_sum_of_its_parts(ops: TorchOps) -> None:
    host = store(ops, torch.float32)
    weights = {"one": 0.7, "two": -1.5, "three": 3.0}
    mixed = change(mix_adapters(mixture(*weights.items()), host, GROUPS, ops, pin=False), ops)
    parts = {name: change(host.get(name) or pytest.fail(name), ops) for name in weights}
    for site in range(len(GROUPS)):
        each = [weight * made for name, weight in weights.items() if (made := parts[name][site]) is not None]
        assert each
        assert mixed[site] is not None
        torch.testing.assert_close(mixed[site], sum(each), rtol=1e-6, atol=1e-6)


@pytest.mark.timeout(600)
def test_ranks_stand_side_by_side_and_weight_nought_takes_none(ops: TorchOps) -> None:
    host = store(ops, torch.bfloat16)
    whole = mix_adapters(mixture(("one", 1.0), ("two", 0.5)), host, GROUPS, ops, pin=False)
    assert whole.ranks == [4 + 4, 6, 2]
    without = mix_adapters(mixture(("one", 1.0), ("two", 0.0)), host, GROUPS, ops, pin=False)
    one = host.get("one") or pytest.fail("gone")
    assert without.ranks == one.ranks
    for mine, theirs in zip(without.weights, one.weights, strict=True):
        assert (mine is None) == (theirs is None)
        assert all(torch.equal(x, y) for x, y in zip(mine or (), theirs or (), strict=True))


@given(weights=st.dictionaries(st.sampled_from(list(PARTS)), st.floats(-10, 10), min_size=1))
def test_any_weights_give_finite_sums(weights: dict[str, float]) -> None:
    ops = TorchOps()
    mixed = mix_adapters(mixture(*weights.items()), store(ops, torch.float16), GROUPS, ops, pin=False)
    assert all(bool(t.isfinite().all()) for pair in mixed.weights if pair for t in pair)


def test_a_part_that_is_not_there_is_told() -> None:
    host = store(TorchOps(), torch.float32)
    with pytest.raises(FailedPrecondition, match="not loaded any more"):
        mix_adapters(mixture(("one", 1.0), ("gone", 1.0)), host, GROUPS, TorchOps(), pin=False)


# -- Against PEFT.


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    for seed, (name, config) in enumerate(ADAPTERS.items()):
        tiny.save_adapter("llama", root / name, seed, **config)
    return {name: root / name for name in ADAPTERS}


@pytest.fixture(params=[False, True], ids=["torch", "native"])
def made(request: pytest.FixtureRequest) -> Iterator[TorchEngine]:
    engine = tiny.engine("llama", native=request.param)
    yield engine
    engine.close()


def peft_mixture(folders: dict[str, Path], weights: dict[str, float]) -> Any:
    """PEFT's own mixture of the adapters."""
    from peft import PeftModel

    model: Any = None
    for name in weights:
        if model is None:
            model = PeftModel.from_pretrained(tiny.model("llama"), folders[name], adapter_name=name)
        else:
            model.load_adapter(folders[name], adapter_name=name)
    model.add_weighted_adapter(list(weights), list(weights.values()), "mixed", combination_type="cat")
    model.set_adapter("mixed")
    return model.eval()


async def scored(
    made: TorchEngine, tokens: Sequence[int], adapter: str, new: int
) -> tuple[list[int], list[float]]:
    """Greedy ids, and the log-probability of each."""
    found = [
        entry
        async for event in made.submit(Job("r", tokens, SamplingParams(logprobs=1, max_tokens=new), adapter))
        for entry in getattr(event, "logprobs", ())
    ]
    return [entry.token_id for entry in found], [entry.logprob for entry in found]


def log_probabilities(model: Any, tokens: Sequence[int], found: Sequence[int]) -> list[float]:
    """Of `found` after `tokens`, in float32."""
    with torch.no_grad():
        logits = model(torch.tensor([[*tokens, *found]]), logits_to_keep=len(found) + 1).logits
    rows = logits[0, :-1].float().log_softmax(-1)
    return [float(row[token]) for row, token in zip(rows, found, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "weights",
    [
        {"a": 0.7, "qv": 0.3},
        {"qv": 0.5},
        {"a": 1.0, "rslora": -0.5, "patterns": 2.0, "one-layer": 0.25},
        {"a2": -0.4, "one-layer": 1.5},  # PEFT needs an adapter of all layers and sites first
    ],
    ids=lambda weights: "+".join(weights),
)
async def test_answers_and_probabilities_are_pefts(
    made: TorchEngine, folders: dict[str, Path], weights: dict[str, float]
) -> None:
    for name in weights:
        await made.load(tiny.artifact(folders[name], made))
    digests = {name: tiny.artifact(folders[name], made).digest for name in weights}
    mix = mixture(*((digests[name], weight) for name, weight in weights.items()))
    assert await made.load(mix) > 0
    model = peft_mixture(folders, weights)
    for tokens in prompts(4, seed=5):
        found, said = await scored(made, tokens, mix.digest, NEW)
        assert found == tiny.greedy(model, tokens, found, NEW, ENDS)
        assert said == pytest.approx(log_probabilities(model, tokens, found), abs=1e-3)


@pytest.mark.slow
async def test_a_mixture_shares_a_batch_and_all_answer_as_alone(
    made: TorchEngine, folders: dict[str, Path]
) -> None:
    digests: list[str | None] = [None]
    for name in ("a", "qv", "rslora"):
        artifact = tiny.artifact(folders[name], made)
        await made.load(artifact)
        digests.append(artifact.digest)
    mix = mixture((str(digests[1]), 0.6), (str(digests[3]), 0.4))
    await made.load(mix)
    digests.append(mix.digest)
    work = [(digests[i % len(digests)], tokens) for i, tokens in enumerate(prompts(15, seed=6))]
    together = await asyncio.gather(*(tiny.answer(made, t, d, max_tokens=NEW) for d, t in work))
    for (digest, tokens), (found, _) in zip(work, together, strict=True):
        alone, _ = await tiny.answer(made, tokens, digest, max_tokens=NEW)
        assert found == alone
    assert len({tuple(found) for found, _ in together}) > 5


@pytest.mark.slow
async def test_it_is_made_beside_the_event_loop_and_the_steps(
    made: TorchEngine, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact, go, make = tiny.artifact(folders["a"], made), threading.Event(), torch_engine.mix_adapters

    def slowly(*given: Any, **more: Any) -> PackedAdapter:
        assert go.wait(30)
        return make(*given, **more)

    monkeypatch.setattr(torch_engine, "mix_adapters", slowly)
    await made.load(artifact)
    making = asyncio.create_task(made.load(mixture((artifact.digest, 0.5))))
    assert (await tiny.answer(made, [1, 2, 3], artifact.digest, max_tokens=NEW))[0]
    assert not making.done()
    go.set()
    assert await making > 0


@pytest.mark.slow
async def test_a_mixture_outlives_its_parts(made: TorchEngine, folders: dict[str, Path]) -> None:
    """It is a copy: parts that are unloaded take nothing from it."""
    artifact = tiny.artifact(folders["a"], made)
    await made.load(artifact)
    mix = mixture((artifact.digest, 0.5))
    await made.load(mix)
    before, _ = await tiny.answer(made, [1, 2, 3], mix.digest, max_tokens=NEW)
    await made.unload(artifact.digest)
    assert (await tiny.answer(made, [1, 2, 3], mix.digest, max_tokens=NEW))[0] == before
    assert await made.unload(mix.digest) > 0
