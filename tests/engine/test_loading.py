"""A base read from files straight into packed weights, against the same base as transformers loads it."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, MistralConfig

from router.config import Settings
from router.engine.checkpoint import open_files
from router.engine.decoder import DecoderShape, plain_config, rotary_table, why_not_packed
from router.engine.loader import LoadedBase, OpenBase, StoredBase, base_digest, load_model, open_base
from router.engine.native import NativeOps
from router.engine.native.build import cpu_levels, load_module
from router.engine.ops import AttentionPlan
from router.engine.runner import PackedBackbone
from router.engine.torch_engine import TorchEngine
from router.engine.torch_ops import TorchOps
from router.errors import ConfigError
from tests.engine import tiny

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
KINDS = ("llama", "llama-long", "llama-bias", "qwen2", "qwen3", "mistral")


def model_of(kind: str) -> Any:
    if kind != "mistral":
        return tiny.model(kind)
    torch.manual_seed(1)
    return AutoModelForCausalLM.from_config(MistralConfig(**tiny.SHAPE, sliding_window=None)).eval()


Saved = Callable[..., Path]


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    """`saved(kind, dtype)`: the folder of that model."""

    def save(kind: str, dtype: torch.dtype = torch.bfloat16, **options: Any) -> Path:
        folder = tmp_path / "base"
        model_of(kind).to(dtype).save_pretrained(folder, **options)
        tiny.tokenizer().save_pretrained(folder)
        return folder

    return save


def native_ops() -> TorchOps:
    return NativeOps(load_module(cpu_levels()[0])) if cpu_levels() else TorchOps()


def logits_of(base: OpenBase, ops: TorchOps, dtype: torch.dtype, quantize: str) -> tuple[torch.Tensor, int]:
    weights, count = base.weights(CPU, dtype), 20
    with closing(weights):
        backbone = PackedBackbone(base.config, weights, ops, 4, 64, quantize)

    def ints(*values: int) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32)

    places = torch.arange(count, dtype=torch.int32)
    table = torch.arange(4, dtype=torch.int32)[None]
    plan = AttentionPlan(ints(0, count), ints(count), table, places, places, count, [0, count], [count])
    with torch.inference_mode():
        found = backbone.forward(torch.arange(7, 7 + count), plan, None, torch.arange(count))
    return found, backbone.saved


@pytest.mark.parametrize("quantize", ["none", "int8", "int4"])
@pytest.mark.parametrize(
    ("kind", "stored"),
    [
        *((kind, torch.bfloat16) for kind in (*KINDS, "phi3", "gemma3")),
        ("qwen2", torch.float16),
        ("llama-bias", torch.float32),
    ],
    ids=str,
)
def test_logits_are_those_of_the_loaded_model(
    kind: str, stored: torch.dtype, quantize: str, saved: Saved
) -> None:
    folder = saved(kind, stored)
    for ops, dtype in [(native_ops(), torch.bfloat16), (native_ops(), torch.float32), (TorchOps(), stored)]:
        ours = open_base(folder, "tiny")
        assert isinstance(ours, StoredBase)
        theirs = LoadedBase(load_model(folder, "tiny"))
        found, expected = (logits_of(base, ops, dtype, quantize) for base in (ours, theirs))
        assert torch.equal(found[0], expected[0])
        assert found[1] == expected[1]
        assert ours.digest() == theirs.digest()


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_all_that_is_known_is_that_of_the_loaded_model(kind: str, saved: Saved) -> None:
    folder = saved(kind)
    settings = Settings(model=str(folder), device="cpu", cache_tokens=256, quantize="int8")
    found = []
    for loaded in (None, load_model(folder, str(folder))):
        engine = TorchEngine(settings, loaded)
        engine.start()
        found.append((engine.info, engine._eos, type(engine._tokenizer), engine.info.kernels))
        engine.close()
    assert found[0] == found[1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_plain_config_says_what_transformers_says(kind: str, saved: Saved) -> None:
    folder = saved(kind)
    ours, theirs = plain_config(folder), AutoConfig.from_pretrained(folder)
    assert ours is not None
    assert DecoderShape.of(ours) == DecoderShape.of(theirs)
    assert (ours.dtype, ours.eos_token_id) == (theirs.dtype, theirs.eos_token_id)
    assert why_not_packed(ours, 64) == why_not_packed(theirs, 64) == ""


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 5e5},
        {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 4.0}},
        {
            "rope_theta": 5e5,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
        {
            "rope_parameters": {
                "rope_theta": 1e4,
                "rope_type": "yarn",
                "factor": 2.0,
                "original_max_position_embeddings": 128,
            }
        },
    ],
    ids=["plain", "linear", "llama3", "yarn"],
)
def test_positions_are_those_of_transformers_config(rope: dict[str, Any], saved: Saved) -> None:
    folder = saved("llama")
    said = json.loads((folder / "config.json").read_text())
    del said["rope_parameters"]
    (folder / "config.json").write_text(json.dumps(said | rope))
    ours = plain_config(folder) or AutoConfig.from_pretrained(folder)
    theirs = AutoConfig.from_pretrained(folder)
    for one, other in zip(rotary_table(ours, 300, CPU), rotary_table(theirs, 300, CPU), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "change",
    [
        {"rms_norm_eps": None},
        {"partial_rotary_factor": 0.5},
        {"model_type": "gpt2"},
        {"use_sliding_window": True, "model_type": "qwen2"},
        {"sliding_window": 8, "model_type": "mistral"},
        {"layer_types": ["sliding_attention"] * 2},
        {"dtype": None},
        {"hidden_size": "64"},
    ],
    ids=str,
)
def test_a_config_that_is_not_plain_is_left_to_transformers(change: dict[str, Any], saved: Saved) -> None:
    folder = saved("llama")
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(said | change))
    assert plain_config(folder) is None


def test_the_tokenizer_is_that_of_transformers(saved: Saved) -> None:
    folder = saved("llama")
    ours, theirs = open_base(folder, "tiny").tokenizer, AutoTokenizer.from_pretrained(folder)
    assert type(ours) is type(theirs)
    assert ours.init_kwargs == theirs.init_kwargs
    assert ours.backend_tokenizer.to_str() == theirs.backend_tokenizer.to_str()


def test_files_in_shards(saved: Saved) -> None:
    folder = saved("qwen3", torch.float32, max_shard_size="200KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    (folder / "other.safetensors").write_bytes(b"not one of them")
    ours, theirs = open_base(folder, "tiny"), LoadedBase(load_model(folder, "tiny"))
    assert isinstance(ours, StoredBase)
    assert ours.digest() == theirs.digest()
    found, expected = (logits_of(base, TorchOps(), torch.float32, False) for base in (ours, theirs))
    assert torch.equal(found[0], expected[0])


def changed(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    file = folder / "model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})


def test_weights_that_the_config_does_not_name_are_not_used(
    saved: Saved, caplog: pytest.LogCaptureFixture
) -> None:
    folder = saved("llama")
    expected = base_digest(load_model(folder, "tiny").model)
    changed(folder, lambda weights: weights.update({"more.weight": torch.ones(3, dtype=torch.bfloat16)}))
    with caplog.at_level(logging.WARNING, "router.engine.loader"):
        assert open_base(folder, "tiny").digest() == expected
    assert "1 weights of the base are not used, such as more.weight" in caplog.text


def test_a_tied_head_that_differs_is_left_to_transformers(saved: Saved) -> None:
    folder = saved("llama")
    changed(folder, lambda w: w.update({"lm_head.weight": w["model.embed_tokens.weight"].clone()}))
    assert isinstance(open_base(folder, "tiny"), StoredBase)
    changed(folder, lambda w: w["lm_head.weight"].add_(1))
    assert isinstance(open_base(folder, "tiny"), LoadedBase)


def test_other_bases_are_left_to_transformers(saved: Saved) -> None:
    folder = saved("llama")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    assert open_files(folder, "tiny") is None
    base = open_base(folder, "tiny")
    assert isinstance(base, LoadedBase)
    assert base.digest() == base_digest(load_model(folder, "tiny").model)


NAME = "model.layers.1.mlp.up_proj.weight"


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def garbled(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(b"\xff" * 8 + file.read_bytes()[8:])


def without_a_shard(folder: Path) -> None:
    file = folder / "model.safetensors"
    index = {"weight_map": dict.fromkeys(load_file(file), "model-1.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    file.unlink()


def with_an_index_of_nothing(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text("[]")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: changed(folder, lambda w: w.pop(NAME)), f"its files do not hold {NAME}$"),
        (
            lambda folder: changed(folder, lambda w: w.update({NAME: w[NAME][:-1].clone()})),
            rf"{NAME} has shape \[95, 64\], and by config.json it has \[96, 64\]",
        ),
        (cut, "model.safetensors is shorter than its header says: "),
        (garbled, "model.safetensors is no whole safetensors file"),
        (without_a_shard, "model-1.safetensors is missing, which model.safetensors.index.json names"),
        (with_an_index_of_nothing, "model.safetensors.index.json cannot be read"),
    ],
    ids=["missing", "shape", "cut", "garbled", "shard", "index"],
)
def test_files_that_do_not_fit_are_refused(damage: Callable[[Path], None], said: str, saved: Saved) -> None:
    folder = saved("llama")
    damage(folder)
    with pytest.raises(ConfigError, match=said):
        open_base(folder, "tiny")


def test_files_that_change_meanwhile_are_refused(saved: Saved) -> None:
    folder = saved("llama")
    base = open_base(folder, "tiny")
    changed(folder, lambda weights: weights[NAME].add_(1))
    with pytest.raises(ConfigError, match="changed while they were read: start again"):
        base.digest()


@pytest.mark.parametrize("ops", [TorchOps(), native_ops()], ids=["torch", "native"])
def test_a_file_that_is_cut_meanwhile_is_refused(ops: TorchOps, saved: Saved) -> None:
    folder = saved("llama")
    base = open_base(folder, "tiny")
    cut_short = (folder / "model.safetensors").read_bytes()[:5000]
    (folder / "model.safetensors").write_bytes(cut_short)
    with pytest.raises(ConfigError, match="became shorter while it was read"):
        logits_of(base, ops, torch.bfloat16, "none")


WIDE = {"vocab_size": 40_000, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 3}
CHILD = """
import sys
from router.config import Settings
from router.engine.torch_engine import TorchEngine

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

small, large = (
    TorchEngine(Settings(model=folder, device="cpu", dtype="bfloat16", cache_tokens=256))
    for folder in sys.argv[1:]
)
small.start()
before = peak()
large.start()
print((peak() - before) / (large.info.size_bytes / 1024), large.info.kernels)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells the peak")
def test_no_second_copy_of_the_weights_is_ever_in_memory(saved: Saved, tmp_path: Path) -> None:
    large = tmp_path / "large"
    saved("llama").rename(large)
    small = saved("llama")
    said = json.loads((large / "config.json").read_text()) | WIDE
    (large / "config.json").write_text(json.dumps(said))
    shapes = DecoderShape.of(plain_config(large)).weights()
    zeros = {name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}
    save_file(zeros, large / "model.safetensors", metadata={"format": "pt"})
    command = [sys.executable, "-c", CHILD, str(small), str(large)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    share, _, kernels = done.stdout.partition(" ")
    assert float(share) < (1.15 if "native (" in kernels else 2.2)


BESIDE = """
import sys, threading, types
from router.engine.decoder import rotary_table
import torch
config = types.SimpleNamespace(
    standardize_rope_params=lambda: None, hidden_size=64, num_attention_heads=4, head_dim=16,
    max_position_embeddings=512, rope_parameters={
        "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
    },
)
threading.Thread(target=__import__, args=("transformers",)).start()
while "transformers.utils" not in sys.modules:
    pass
print(len(rotary_table(config, 8, torch.device("cpu"))[0]))
"""


def test_positions_wait_for_another_threads_import_of_transformers() -> None:
    done = subprocess.run([sys.executable, "-c", BESIDE], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("8\n", "")
