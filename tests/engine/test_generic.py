"""Any decoder that calls the attention interface runs on the generic path; others are refused."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import transformers

from router.engine import torch_engine
from router.errors import ConfigError
from tests.engine import tiny

S = tiny.SHAPE
ENDS: dict[str, Any] = {"bos_token_id": None, "eos_token_id": 257, "pad_token_id": 256}
CASES: Mapping[str, tuple[Callable[[], Any], list[str]]] = {
    "mistral, sliding window": (
        lambda: transformers.MistralConfig(**S, sliding_window=20),
        ["q_proj", "down_proj"],
    ),
    "gemma2, soft caps": (
        lambda: transformers.Gemma2Config(**S, head_dim=16, sliding_window=16, query_pre_attn_scalar=16),
        ["v_proj", "up_proj"],
    ),
    "phi3, joined layers": (lambda: transformers.Phi3Config(**S), ["qkv_proj", "gate_up_proj"]),
    "gpt2, transposed layers": (
        lambda: transformers.GPT2Config(
            vocab_size=300, n_embd=64, n_layer=2, n_head=4, n_positions=256, **ENDS
        ),
        ["c_attn", "c_fc"],
    ),
    "qwen3 mixture of experts": (
        lambda: transformers.Qwen3MoeConfig(
            **S, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, head_dim=16
        ),
        ["q_proj", "o_proj"],
    ),
}


@pytest.fixture(params=CASES, ids=lambda name: name.split(",")[0])
def case(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[str, list[str]]:
    config, targets = CASES[request.param]
    monkeypatch.setattr(torch_engine, "why_not_packed", lambda *_: "the test wants it")
    monkeypatch.setitem(tiny.CONFIGS, request.param, config)
    return request.param, targets


async def test_base_and_adapter_rows_equal_the_model_alone(
    case: tuple[str, list[str]], tmp_path: Path
) -> None:
    kind, targets = case
    transposed = "transposed" in kind
    tuned = tiny.save_adapter(kind, tmp_path / "a", target_modules=targets, fan_in_fan_out=transposed)
    made = tiny.engine(kind)
    assert made.info.kernels.startswith("generic")
    artifact = tiny.artifact(tmp_path / "a", made)
    await made.load(artifact)
    rng = random.Random(0)
    work = [[rng.randrange(256) for _ in range(rng.randint(3, 60))] for _ in range(6)]
    digests = [None, artifact.digest]
    answers = await asyncio.gather(
        *(tiny.answer(made, tokens, digests[i % 2], max_tokens=10) for i, tokens in enumerate(work))
    )
    models = [tiny.model(kind), tuned]
    for i, (tokens, (ids, _)) in enumerate(zip(work, answers, strict=True)):
        expected = tiny.reference(models[i % 2], tokens, 10)
        assert ids == [t for t in expected if t != ENDS["eos_token_id"]]
    made.close()


def test_a_model_that_ignores_the_attention_function_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        tiny.CONFIGS,
        "falcon",
        lambda: transformers.FalconConfig(
            vocab_size=300, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, alibi=False, **ENDS
        ),
    )
    with pytest.raises(ConfigError, match="FalconForCausalLM does not use transformers' attention interface"):
        tiny.engine("falcon")
