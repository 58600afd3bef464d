"""An engine with weights in few bits answers as a model with the same rounded weights, whatever runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from router.config import Settings
from router.engine.loader import LoadedModel
from router.engine.native import NativeOps
from router.engine.native.build import cpu_levels, load_module
from router.engine.ops import quantise
from router.engine.torch_engine import TorchEngine
from router.engine.torch_ops import TorchOps
from router.engine.weights import packed
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


def restored(weight: torch.Tensor, quantize: str, ops: TorchOps) -> torch.Tensor:
    """What few bits leave of it."""
    if quantize == "int4":
        return ops.quantise_blocks(weight).floats()
    small = quantise(weight)
    return small.values.float() * small.scales[:, None]


def rounded(tuned: Any, head: bool, quantize: str, ops: TorchOps) -> Any:
    """A PEFT model whose base has the weights that few bits leave of its linear layers."""
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
        values = restored(weight, quantize, ops)
        module.weight = torch.nn.Parameter(values.t() if transposed else values, requires_grad=False)
    return tuned


KINDS = [
    *((kind, "int8") for kind in ("llama", "llama-bias", "qwen2", "qwen3", *GENERIC)),
    *((kind, "int4") for kind in ("llama-bias", "qwen3", "phi3")),
]
IDS = [f"{kind}-{way}" for kind, way in KINDS]


@pytest.mark.parametrize("native", [False, True], ids=["torch", "native"])
@pytest.mark.parametrize(("kind", "quantize"), KINDS, ids=IDS)
async def test_base_and_adapter_answer_as_with_rounded_weights(
    kind, quantize, native, tmp_path: Path, monkeypatch
):
    if kind in GENERIC:
        monkeypatch.setitem(tiny.CONFIGS, kind, GENERIC[kind])
    targets = {"gpt2": ["c_attn"], "phi3": ["qkv_proj"]}.get(kind, ["q_proj", "down_proj"])
    tuned = tiny.save_adapter(kind, tmp_path / "a", target_modules=targets, fan_in_fan_out=kind == "gpt2")
    made = tiny.engine(kind, native=native, quantize=quantize)
    try:
        artifact = tiny.artifact(tmp_path / "a", made)
        await made.load(artifact)
        packed = made.info.kernels.startswith("packed")
        assert packed == (kind != "gpt2")
        ops = NativeOps(load_module(cpu_levels()[0])) if native and cpu_levels() else TorchOps()
        reference = rounded(tuned, packed, quantize, ops)
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


def test_inputs_that_are_no_whole_groups_keep_8_bits():
    weight, x = torch.randn(8, 48), torch.randn(3, 48)
    (wide, saved), (small, same) = (packed(weight, None, TorchOps(), way) for way in ("int8", "int4"))
    assert torch.equal(wide(x), small(x))
    assert saved == same


def test_4_bits_take_less_than_a_third_of_bfloat16():
    plain, small = tiny.engine("llama-bias"), tiny.engine("llama-bias", quantize="int4")
    try:
        assert small.info.served_digest == f"{plain.info.digest}+int4"
        linear = sum(
            module.weight.numel()
            for module in tiny.model("llama-bias").modules()
            if isinstance(module, torch.nn.Linear)
        )
        saved = plain.info.size_bytes - small.info.size_bytes
        assert saved == 4 * linear - linear * 5 // 8
        assert (4 * linear - saved) / (2 * linear) < 0.32
    finally:
        plain.close()
        small.close()


def test_a_device_without_operations_for_it_is_refused_before_anything_is_loaded(monkeypatch):
    monkeypatch.setattr("router.engine.torch_engine.pick_device", lambda wanted: torch.device("cuda"))
    loaded = LoadedModel(tiny.model("llama"), tiny.tokenizer(), "llama")
    engine = TorchEngine(Settings(device="cuda", dtype="float32", quantize="int4"), loaded)
    with pytest.raises(ConfigError, match=r"int4 is for the CPU.*--device cpu"):
        engine.start()
