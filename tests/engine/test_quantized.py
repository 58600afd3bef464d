"""An engine with weights in 8 bits answers as a model with the same rounded weights, whatever runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from router.config import Settings
from router.engine.loader import LoadedModel
from router.engine.ops import quantise
from router.engine.torch_engine import TorchEngine
from router.errors import ConfigError
from tests.engine import tiny

PROMPT = list(b"an answer in eight bits")
GENERIC = {
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=300,
        n_embd=64,
        n_layer=2,
        n_head=4,
        n_positions=256,
        bos_token_id=None,
        eos_token_id=257,
        pad_token_id=256,
    ),
    "phi3": lambda: transformers.Phi3Config(**tiny.SHAPE),
}


def rounded(tuned: Any, head: bool) -> Any:
    """A PEFT model whose base has the weights that 8 bits leave of its linear layers."""
    base = tuned.get_base_model()
    last = base.get_output_embeddings()
    if head:  # untied: the embedding stays as it is
        last.weight = torch.nn.Parameter(last.weight.detach().clone())
    for name, module in base.named_modules():
        is_linear = isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D"
        if not is_linear or "lora_" in name or (module is last and not head):
            continue
        transposed = type(module).__name__ == "Conv1D"
        weight = module.weight.detach().t() if transposed else module.weight.detach()
        small = quantise(weight)
        restored = small.values.float() * small.scales[:, None]
        module.weight = torch.nn.Parameter(restored.t() if transposed else restored, requires_grad=False)
    return tuned


@pytest.mark.parametrize("native", [False, True], ids=["torch", "native"])
@pytest.mark.parametrize("kind", ["llama", "llama-bias", "qwen2", "qwen3", *GENERIC])
async def test_base_and_adapter_answer_as_with_rounded_weights(kind, native, tmp_path: Path, monkeypatch):
    if kind in GENERIC:
        monkeypatch.setitem(tiny.CONFIGS, kind, GENERIC[kind])
    targets = {"gpt2": ["c_attn"], "phi3": ["qkv_proj"]}.get(kind, ["q_proj", "down_proj"])
    tuned = tiny.save_adapter(kind, tmp_path / "a", target_modules=targets, fan_in_fan_out=kind == "gpt2")
    made = tiny.engine(kind, native=native, quantize="int8")
    try:
        artifact = tiny.artifact(tmp_path / "a", made)
        await made.load(artifact)
        packed = made.info.kernels.startswith("packed")
        assert packed == (kind != "gpt2")
        reference = rounded(tuned, head=packed)
        ends = frozenset({tiny.SHAPE["eos_token_id"]})
        for adapter in (artifact.digest, None):
            found, _ = await tiny.answer(made, PROMPT, adapter, max_tokens=12)
            if adapter is None:
                with reference.disable_adapter():
                    expected = tiny.greedy(reference, PROMPT, found, 12, ends)
            else:
                expected = tiny.greedy(reference, PROMPT, found, 12, ends)
            assert found == expected
    finally:
        made.close()


def test_the_engine_tells_its_precision_and_size():
    plain, small = tiny.engine("llama-bias"), tiny.engine("llama-bias", quantize="int8")
    try:
        assert small.info.digest == plain.info.digest  # the checkpoint's
        assert (plain.info.precision, small.info.precision) == ("float32", "float32, weights int8")
        assert plain.info.served_digest == plain.info.digest
        assert small.info.served_digest == f"{plain.info.digest}+int8"
        weights = [
            module.weight
            for module in tiny.model("llama-bias").modules()
            if isinstance(module, torch.nn.Linear)
        ]
        saved = sum(3 * weight.numel() - 4 * len(weight) for weight in weights)
        assert small.info.size_bytes == plain.info.size_bytes - saved
    finally:
        plain.close()
        small.close()


def test_a_device_without_operations_for_it_is_refused_before_anything_is_loaded(monkeypatch):
    monkeypatch.setattr("router.engine.torch_engine.pick_device", lambda wanted: torch.device("cuda"))
    loaded = LoadedModel(tiny.model("llama"), tiny.tokenizer(), "llama")
    engine = TorchEngine(Settings(device="cuda", dtype="float32", quantize="int8"), loaded)
    with pytest.raises(ConfigError, match=r"int8 is for the CPU.*--device cpu"):
        engine.start()
