"""Runs inside the peer's own environment: vLLM for CPU, driven line by line over standard input.

Started as `python peer_vllm.py MODEL DTYPE REQUESTS [ADAPTER_FOLDER ...]`. Prints `ready`, then for
each input line (a JSON object with `prompts` and `adapters`) one JSON line with seconds and tokens.
"""

from __future__ import annotations

import json
import os
import sys
import time


def main() -> None:
    """Serve until standard input ends."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    model, dtype, requests, *folders = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the library prints goes to standard error

    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    lora = {"enable_lora": True, "max_loras": len(folders), "max_lora_rank": 16} if folders else {}
    llm = LLM(
        model=model,
        dtype=dtype,
        max_model_len=512,
        max_num_seqs=int(requests),
        enable_prefix_caching=False,
        disable_log_stats=True,
        **lora,
    )
    loaded = [LoRARequest(f"a{i}", i + 1, folder) for i, folder in enumerate(folders)]
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        work = json.loads(line)
        params = SamplingParams(temperature=0.0, max_tokens=work["new"], ignore_eos=True)
        prompts = [{"prompt_token_ids": p} for p in work["prompts"]]
        chosen = [loaded[i % len(loaded)] for i in range(len(prompts))] if loaded else None
        start = time.perf_counter()
        outputs = llm.generate(prompts, params, lora_request=chosen, use_tqdm=False)
        seconds = time.perf_counter() - start
        tokens = sum(len(o.outputs[0].token_ids) for o in outputs)
        print(json.dumps({"seconds": seconds, "tokens": tokens}), file=answers, flush=True)


if __name__ == "__main__":
    main()
