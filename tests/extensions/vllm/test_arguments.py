"""Settings as vLLM's arguments: what goes through, what is refused and in which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from router.config import Settings
from router.errors import ConfigError
from router.extensions.vllm import split_like_a_shell
from router.extensions.vllm.arguments import check, check_known, engine_args, parsed, rank_of, slots_of

CONFIG = {
    "num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 576, "num_hidden_layers": 30,
    "max_position_embeddings": 2048,
}  # fmt: skip


def made(device: str = "cpu", dtype: str = "bfloat16", args: str = "", **settings: Any) -> dict[str, Any]:
    of_server = Settings(engine="vllm", **settings)
    return engine_args(of_server, split_like_a_shell(args), Path("base"), CONFIG, device, dtype)


def test_settings_that_mean_the_same_go_through() -> None:
    found = made(max_running=8, max_context=1000, slots=5, max_rank=20, prefix_cache=False, model="m")
    assert found["model"] == "base"
    assert (found["max_num_seqs"], found["max_model_len"], found["enable_prefix_caching"]) == (8, 1000, False)
    assert (found["max_loras"], found["max_lora_rank"]) == (6, 32)
    assert (found["scheduling_policy"], found["trust_remote_code"]) == ("priority", False)


def test_on_a_cpu_the_cache_has_bytes_and_holds_a_request() -> None:
    found = made(cache_tokens=1000)
    assert (found["block_size"], found["max_model_len"]) == (32, 1024)
    assert found["kv_cache_memory_bytes"] == (1024 + 32) * 2 * 2 * 64 * 3 * 30
    assert made()["max_model_len"] == 2048
    assert (
        made(cache_tokens=1000, args="tensor_parallel_size=2")["kv_cache_memory_bytes"] * 2
        == found["kv_cache_memory_bytes"]
    )


def test_on_cuda_vllm_fills_the_device_unless_it_is_told() -> None:
    assert "num_gpu_blocks_override" not in made("cuda")
    found = made("cuda", cache_tokens=1000)
    assert (found["num_gpu_blocks_override"], found["block_size"]) == (63, 16)
    assert (found["max_loras"], made("cuda")["max_model_len"]) == (32, None)


def test_steps_are_short_on_a_cpu_and_as_long_as_vllm_wants_on_cuda() -> None:
    assert made()["max_num_batched_tokens"] == 512
    assert "max_num_batched_tokens" not in made("cuda")
    assert made("cuda", max_step_tokens=64, max_running=100)["max_num_batched_tokens"] == 100


def test_vllms_own_arguments_are_typed() -> None:
    text = "tensor_parallel_size=2 enforce-eager=true quantization=fp8 speculative_config='{\"a\": [1, 2]}'"
    found = made(args=text)
    assert (found["tensor_parallel_size"], found["enforce_eager"], found["quantization"]) == (2, True, "fp8")
    assert found["speculative_config"] == {"a": [1, 2]}


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        ("max_num_seqs=4", "said by the setting max_running"),
        ("--max-lora-rank=4", "said by the setting max_rank"),
        ("trust_remote_code=true", "is not free"),
        ("quantization", "takes KEY=VALUE"),
        ("=4", "takes KEY=VALUE"),
    ],
)
def test_arguments_that_are_ours_are_refused_by_name(pair: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parsed([pair])


def test_an_unknown_argument_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="no argument quantisation; did you mean quantization"):
        check_known({"quantisation": "fp8"}, ["quantization", "seed"])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"quantize": "int8"}, "quantize goes not with the engine vllm"),
        ({"quantized_from": "0" * 64}, "quantized_from goes"),
        ({"native": False}, "native goes"),
        ({"native_dir": "x"}, "native_dir goes"),
        ({"device": "cuda:1"}, "CUDA_VISIBLE_DEVICES"),
    ],
)
def test_settings_without_a_meaning_are_refused(settings: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check(Settings(engine="vllm", **settings), ())


def test_arguments_are_looked_at_before_anything_is_fetched() -> None:
    with pytest.raises(ConfigError, match="said by the setting model"):
        check(Settings(engine="vllm"), ["model=x"])


def test_another_device_than_vllms_is_refused() -> None:
    with pytest.raises(ConfigError, match="built for cpu"):
        engine_args(Settings(engine="vllm", device="cuda"), (), Path("b"), CONFIG, "cpu", "bfloat16")


def test_ranks_and_slots_are_those_that_vllm_has() -> None:
    assert [rank_of(rank) for rank in (1, 2, 16, 65, 512)] == [1, 8, 16, 128, 512]
    assert [slots_of(Settings(slots=3), device) for device in ("cpu", "cuda")] == [4, 3]
