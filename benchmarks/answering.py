"""The standard work in numbers, and a contestant's side of it: a process that works a round a line.

16 requests of about 90 prompt tokens, 64 new tokens each. It imports the standard library only, since a peer
runs it by the Python of an environment of its own.
"""

from __future__ import annotations

import gc
import json
import os
import random
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

REQUESTS, PROMPT_TOKENS, NEW_TOKENS, RANK = 16, 90, 64, 16
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
THREADING = ("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "NUMEXPR_", "VLLM_CPU_", "LD_PRELOAD")
About = dict[str, Any]
Round = Callable[[dict[str, Any]], dict[str, Any]]


def prompts(vocabulary: int, seed: int = 0, count: int = REQUESTS) -> list[list[int]]:
    """Random token ids (no special ones), all different from the first token on: no prefix is shared."""
    rng = random.Random(seed)
    return [
        [rng.randrange(1000, vocabulary) for _ in range(PROMPT_TOKENS + rng.randint(-8, 8))]
        for _ in range(count)
    ]


def answer(prepare: Callable[[], tuple[About, Round]]) -> None:
    """Prepare, write what `prepare` says of itself as a line of JSON, then answer line by line until the end.

    Between lines this process is blocked on a read, so that its threads sleep. What libraries print goes to
    standard error: standard output carries answers only.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    about, run = prepare()
    print(json.dumps(about), file=answers, flush=True)
    for line in sys.stdin:
        gc.collect()
        print(json.dumps(run(json.loads(line))), file=answers, flush=True)


def dealt(work: dict[str, Any], most: int) -> list[int | None]:
    """The number of each prompt's adapter: that of "adapter", or the first "adapters" of `most` in turn."""
    count = len(work["prompts"])
    if "adapter" in work:
        return [work["adapter"]] * count
    used = min(work.get("adapters", most), most)
    return [number % used if used else None for number in range(count)]


def one_by_one(
    ask: Callable[[list[int], int | None, int], list[int]], work: dict[str, Any]
) -> dict[str, Any]:
    """Prompt after prompt: it is read, then asked for its first token, then for its whole answer.

    `ask` takes prompt, adapter and tokens. Returns seconds until the first token and for the whole answer
    while the prompt is cached, and the answers' tokens.
    """
    found: dict[str, Any] = {"first": [], "whole": [], "answers": []}
    for prompt, adapter in zip(work["prompts"], dealt(work, 0), strict=True):
        ask(prompt, adapter, 1)
        for name, tokens in (("first", 1), ("whole", work["new"])):
            begin = time.perf_counter()
            answer = ask(prompt, adapter, tokens)
            found[name].append(time.perf_counter() - begin)
        found["answers"].append(answer)
    return found


def about(threads: int | str, *packages: str, **more: Any) -> About:
    """What a contestant says of itself: process, threads, settings given to it, libraries."""
    said = {
        "process": os.getpid(),
        "threads": threads,
        "settings": threading_settings(os.environ),
        "libraries": {name: version(name) for name in packages},
    }
    return said | more


def threading_settings(environment: Any) -> dict[str, str]:
    """The variables among `environment` that change how many threads there are, and how they wait."""
    return {name: value for name, value in sorted(environment.items()) if name.startswith(THREADING)}
