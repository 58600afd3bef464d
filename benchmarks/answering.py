"""A contestant's side of a benchmark: a process that says what it is, then works a round a line.

It imports the standard library only, since a peer runs it by the Python of an environment of its own.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

THREADING = ("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "NUMEXPR_", "VLLM_CPU_", "LD_PRELOAD")
About = dict[str, Any]
Round = Callable[[dict[str, Any]], dict[str, Any]]


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
