"""Our settings as vLLM's arguments: those that mean the same, those that it has no use for, and its own."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from router.engine.checkpoint import cache_bytes
from router.errors import ConfigError

if TYPE_CHECKING:
    from router.config import Settings

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM has room for
MAX_LOGPROBS = 20  # as many as a request may ask for
HOST_ADAPTERS = 100_000  # of vLLM's own count, which is not to interfere with ours of bytes
CPU_BLOCK = 32  # tokens; with vLLM's 128 short prompts share no beginning
CPU_CACHE_TOKENS = 32_768
OURS = {
    "model": "model", "tokenizer": "model", "served_model_name": "model", "dtype": "dtype",
    "max_num_seqs": "max_running", "max_model_len": "max_context",
    "max_num_batched_tokens": "max_step_tokens",
    "num_gpu_blocks_override": "cache_tokens", "enable_prefix_caching": "prefix_cache", "max_loras": "slots",
    "max_lora_rank": "max_rank", "max_cpu_loras": "host_memory_mb", "device_ids": "device",
}  # fmt: skip
FIXED = {
    "enable_lora", "lora_dtype", "scheduling_policy", "scheduler_cls", "worker_cls", "worker_extension_cls",
    "max_logprobs", "logprobs_mode", "structured_outputs_config", "generation_config", "runner", "convert",
    "trust_remote_code", "skip_tokenizer_init", "disable_log_stats", "stream_interval", "tokens_only",
    "logits_processors", "data_parallel_size", "data_parallel_rank", "api_process_count", "log_level",
    "logging_config", "log_config_file", "shutdown_timeout", "enable_log_requests", "lora_target_modules",
}  # fmt: skip


def check(settings: Settings, args: Collection[str]) -> None:
    """Raises ConfigError for settings that mean nothing to vLLM, and for arguments that are no KEY=VALUE."""
    nothing = [
        (settings.quantize != "none", "quantize", "say what vLLM calls it: --vllm-args quantization=…"),
        (bool(settings.quantized_from), "quantized_from", "it is for GGUF files, which vllm does not get"),
        (not settings.native, "native", "vLLM has kernels of its own"),
        (bool(settings.native_dir), "native_dir", "vLLM has kernels of its own"),
        (":" in settings.device, "device", "name devices by CUDA_VISIBLE_DEVICES"),
    ]
    found = [f"{name} goes not with the engine vllm: {why}" for wrong, name, why in nothing if wrong]
    if found:
        raise ConfigError("; ".join(found))
    parsed(args)


def parsed(pairs: Collection[str]) -> dict[str, Any]:
    """`KEY=VALUE`, values as JSON where they are and as text otherwise. Raises ConfigError."""
    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        key = key.strip().lstrip("-").replace("-", "_")
        if not equals or not key:
            raise ConfigError(f"vllm.args takes KEY=VALUE, not {pair!r}")
        if key in OURS:
            raise ConfigError(f"vllm.args: {key} is said by the setting {OURS[key]}")
        if key in FIXED:
            raise ConfigError(f"vllm.args: {key} is not free: this server depends on what it sets there")
        found[key] = _value(value)
    return found


def check_known(args: Mapping[str, Any], known: Collection[str]) -> None:
    """Raises ConfigError for an argument that this version of vLLM has not, with the nearest that it has."""
    for key in args:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"vllm.args: vLLM has no argument {key}{hint}")


def engine_args(
    settings: Settings,
    args: Collection[str],
    folder: Path,
    config: Mapping[str, Any],
    device: str,
    dtype: str,
) -> dict[str, Any]:
    """All of vLLM's arguments. `args` are those of the operator, `config` is the base's.

    `device` is vLLM's word: cpu or cuda.
    """
    if settings.device not in ("auto", device):
        raise ConfigError(f"device {settings.device} was asked for, and this vLLM is built for {device}")
    given = parsed(args)
    made: dict[str, Any] = {
        "model": str(folder),
        "served_model_name": settings.model,
        "dtype": dtype,
        "max_num_seqs": settings.max_running,
        "max_model_len": settings.max_context or None,
        "enable_prefix_caching": settings.prefix_cache,
        "enable_lora": True,
        "max_loras": slots_of(settings, device),
        "max_cpu_loras": HOST_ADAPTERS,
        "max_lora_rank": rank_of(settings.max_rank),
        "scheduling_policy": "priority",
        "max_logprobs": MAX_LOGPROBS,
        "logprobs_mode": "raw_logprobs",
        "structured_outputs_config": {"backend": "guidance", "disable_any_whitespace": True},
        "generation_config": "vllm",
        "trust_remote_code": False,
        "disable_log_stats": True,  # the default ones; ours counts all the same
    }
    if device == "cpu" or "max_step_tokens" in settings.model_fields_set:
        made["max_num_batched_tokens"] = max(settings.max_step_tokens, settings.max_running)
    made |= _cache(settings, config, device, dtype, given)
    return made | given


def slots_of(settings: Settings, device: str) -> int:
    """One more on a CPU, where kernels read the last slot for requests that have no adapter."""
    return settings.slots + (device == "cpu")


def rank_of(wanted: int) -> int:
    """The least of vLLM's ranks that has room for `wanted`."""
    return next(rank for rank in RANKS if rank >= wanted)


def _cache(
    settings: Settings, config: Mapping[str, Any], device: str, dtype: str, given: Mapping[str, Any]
) -> dict[str, Any]:
    """How much is kept of keys and values, and so how long a request may be."""
    if device != "cpu":
        if settings.cache_tokens == "auto":
            return {}
        block = int(given.get("block_size") or 16)
        return {"num_gpu_blocks_override": math.ceil(settings.cache_tokens / block), "block_size": block}
    block = int(given.get("block_size") or CPU_BLOCK)
    tokens = CPU_CACHE_TOKENS if settings.cache_tokens == "auto" else settings.cache_tokens
    tokens = math.ceil(tokens / block) * block
    own = int(config.get("max_position_embeddings") or tokens)
    made: dict[str, Any] = {"block_size": block}
    made["max_model_len"] = min(tokens, own, settings.max_context or own)
    if "kv_cache_memory_bytes" not in given:
        parts = int(given.get("tensor_parallel_size") or 1)
        width = 4 if dtype == "float32" else 2
        held = tokens + block  # vLLM keeps one block for itself
        made["kv_cache_memory_bytes"] = held * cache_bytes(config, width) // parts
    return made


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
