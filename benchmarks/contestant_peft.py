"""PEFT as a contestant of a benchmark: a line in, a round, a line out.

The same weights as this engine has, one static batch, `generate(adapter_names=...)`; without adapters,
`disable_adapter()`, and with `--adapters 0` transformers alone. One OpenMP pool: the base is loaded by the
thread that generates.
In: {"prompts": [...], "new": N, "adapters": N}; out: {"seconds": ..., "tokens": ...}.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import torch

from benchmarks.answering import About, Round, about, answer
from benchmarks.contestants import physical_cores
from benchmarks.workload import peft_generate, peft_model, random_adapter, sites
from router.engine.loader import load_model
from router.models import resolve_model


def prepare(args: argparse.Namespace) -> tuple[About, Round]:
    """The base with its adapters."""
    torch.set_num_threads(physical_cores())
    base: Any = load_model(resolve_model(args.model), args.model).model
    base.to(getattr(torch, args.dtype))
    places = sites(base)
    artifacts = [random_adapter(str(number), places) for number in range(args.adapters)]
    tuned = peft_model(base, artifacts) if artifacts else base

    def run(work: dict[str, Any]) -> dict[str, Any]:
        prompts, count, new = work["prompts"], work["adapters"], work["new"]
        if count:
            names = [f"a{i % count}" for i in range(len(prompts))]
            seconds, tokens = peft_generate(tuned, prompts, names, new)
        elif not artifacts:
            seconds, tokens = peft_generate(tuned, prompts, None, new)
        else:
            with tuned.disable_adapter():
                seconds, tokens = peft_generate(tuned, prompts, None, new)
        return {"seconds": seconds, "tokens": tokens}

    return about(torch.get_num_threads(), "peft", "transformers", "torch", dtype=args.dtype), run


def main() -> None:
    """Answer until the input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--adapters", type=int, default=8)
    answer(partial(prepare, parser.parse_args()))


if __name__ == "__main__":
    main()
