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
