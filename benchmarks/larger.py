"""`python -m benchmarks.larger`: bases of one to three billion parameters.

The shapes are those of Llama-3.2-1B, Qwen3-1.7B and Llama-3.2-3B, the weights random, made on first use in
the user's cache folder. This engine stands beside the limits of the machine and beside peers. Sections may
be measured one by one (`--section`): the newest of each stands on the page `results/larger-SHAPE.md`. What
cannot be measured here is left out with a line that says why.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from pydantic import ValidationError

from benchmarks import larger_peers, larger_start, llama_gguf
from benchmarks.answering import REQUESTS
from benchmarks.contestants import Entry, Field, Missing, ending
from benchmarks.larger_loads import (
    ADAPTERS,
    Ask,
    Found,
    against_memory,
    long_prompts,
    many_requests,
    one_request,
    warm,
)
from benchmarks.larger_page import LLAMA, LLAMA_MIXED, PEFT, TRANSFORMERS, VLLM, VLLM_MIXED, page, text
from benchmarks.larger_shapes import SHAPES, WEIGHTS, Shape, made, remove, sites_of
from benchmarks.sections import Section, alone, measure
from benchmarks.workload import export, random_adapter
from router.config import Settings
from router.errors import RouterError

GROUPS = {
    "memory": ("start",),
    "vllm": (VLLM, VLLM_MIXED),
    "llama.cpp": (*LLAMA.values(), LLAMA_MIXED),
    "peers": (VLLM, VLLM_MIXED, *LLAMA.values(), LLAMA_MIXED, TRANSFORMERS, PEFT),
}
OneRequest = Callable[[Ask, int, int, int], Found]


@dataclass(frozen=True, slots=True)
class Run:
    """What every section needs."""

    shape: Shape
    base: Path
    rounds: int

    @property
    def vocabulary(self) -> int:
        """Ids that prompts are made of."""
        return self.shape.vocabulary


def main() -> None:
    """Measure the sections that are asked for, and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="llama-1b")
    parser.add_argument(
        "--section",
        choices=(*SECTIONS, *GROUPS),
        nargs="+",
        default=list(SECTIONS),
        help="what is measured (default: all); " + "; ".join(f"{g}: {', '.join(GROUPS[g])}" for g in GROUPS),
    )
    parser.add_argument(
        "--prepare", action="store_true", help="make files and install peers, measure nothing"
    )
    parser.add_argument("--clean", action="store_true", help="remove the shape's files afterwards")
    parser.add_argument("--rounds", type=int, default=2, help="counted rounds (default 2)")
    args = parser.parse_args()
    shape = SHAPES[args.shape]
    wanted = [name for given in args.section for name in GROUPS.get(given, (given,))]
    with ending():
        try:
            run = Run(shape, made(shape), args.rounds)
        except OSError as error:
            raise SystemExit(f"error: {error}") from None
        if args.prepare:
            prepare(run)
            return
        work = {name: partial(SECTIONS[name], run) for name in wanted}
        measure(work, page(shape), partial(text, shape), rounds=run.rounds)
    if args.clean:
        remove(run.base)


def prepare(run: Run) -> None:
    """Everything that is made or installed once, so that a measurement finds it."""
    for what in (
        partial(larger_peers.vllm, run.base, []),
        *(partial(larger_peers.llama, run.base, kind, REQUESTS, []) for kind in LLAMA),
    ):
        try:
            what()
        except Missing as error:
            print(f"left out: {error}", file=sys.stderr)


def start(run: Run) -> Section:
    """Exec to SERVING and memory, beside reading the file once."""
    file = run.base / WEIGHTS
    larger_start.forget(file)
    cold, *warm = (larger_start.read(file) for _ in range(3))
    starts = [larger_start.start(run.base) for _ in range(run.rounds)]
    larger_start.forget(file)
    first = larger_start.start(run.base)
    return Section(
        facts={
            "cold read": asdict(cold),
            "warm read": min(reading.seconds for reading in warm),
            "warm": {name: median(asdict(one)[name] for one in starts) for name in asdict(starts[0])},
            "cold": asdict(first),
        }
    )


def one(run: Run, field: Field, entry: Entry, count: int, way: OneRequest = one_request) -> Found:
    """One request, with an adapter where `count` is the number of adapters."""
    ask = partial(field.ask, entry.name)
    warm(ask, run.vocabulary, count)
    return {f"one, {min(count, 1)}": way(ask, run.vocabulary, min(count, 1), run.rounds)}


def many(run: Run, field: Field, entry: Entry, count: int) -> Found:
    """16 requests with so many adapters."""
    ask = partial(field.ask, entry.name)
    warm(ask, run.vocabulary, count)
    return {f"many, {count}": many_requests(ask, run.vocabulary, count, run.rounds)}


def prompts(run: Run, field: Field, entry: Entry) -> Found:
    """Long prompts, each read once."""
    return {"prompts": long_prompts(partial(field.ask, entry.name), run.vocabulary, 1)}


def loads(run: Run, counts: tuple[int, ...], field: Field, entry: Entry) -> Found:
    """One request and 16 with each number of adapters; long prompts where there is also none."""
    found: Found = {}
    for count in counts:
        found |= one(run, field, entry, count) | many(run, field, entry, count)
    return found | (prompts(run, field, entry) if 0 in counts else {})


def decode(run: Run) -> Section:
    """This engine: one request against memory, 16 at once."""

    def loads(field: Field, entry: Entry) -> Found:
        found: Found = {}
        for count in (0, ADAPTERS):
            found |= one(run, field, entry, count, against_memory) | many(run, field, entry, count)
        return found

    return alone(larger_peers.this_engine(run.base, "none"), loads)


def prompt(run: Run) -> Section:
    """This engine: long prompts against the peak of the multipliers."""

    def loads(field: Field, entry: Entry) -> dict[str, Any]:
        ask = partial(field.ask, entry.name)
        before = ask({"peak": True})
        warm(ask, run.vocabulary, 0)
        times = long_prompts(ask, run.vocabulary, run.rounds)
        peak = max(before, ask({"peak": True}), key=lambda one: one["rate"])
        return {"prompts": times, "peak": peak}

    return alone(larger_peers.this_engine(run.base, "none"), loads)


def quantized(way: str, run: Run) -> Section:
    """This engine with weights in fewer bits."""
    try:
        Settings(model=str(run.base), quantize=way)  # type: ignore[arg-type]
    except (RouterError, ValidationError):
        raise Missing(f"this version has no quantize = {way}") from None

    return alone(larger_peers.this_engine(run.base, way), partial(loads, run, (0, ADAPTERS)))


@contextmanager
def exported(run: Run) -> Iterator[list[Path]]:
    """8 random adapters as PEFT folders."""
    with tempfile.TemporaryDirectory() as folder:
        made = (random_adapter(str(number), sites_of(run.shape)) for number in range(ADAPTERS))
        yield [export(artifact, Path(folder)) for artifact in made]


def vllm(run: Run) -> Section:
    """vLLM without adapters: where it may have some, its base is slower."""
    return alone(larger_peers.vllm(run.base, []), partial(loads, run, (0,)))


def vllm_adapters(run: Run) -> Section:
    """vLLM with adapters."""
    with exported(run) as folders:
        return alone(larger_peers.vllm(run.base, folders), partial(loads, run, (ADAPTERS,)))


def llama(kind: str, run: Run) -> Section:
    """llama.cpp: a server with one slot for one request and long prompts, and one with 16."""

    def of_one(field: Field, entry: Entry) -> Found:
        return one(run, field, entry, 0) | prompts(run, field, entry)

    first = alone(larger_peers.llama(run.base, kind, 1, []), of_one)
    second = alone(larger_peers.llama(run.base, kind, REQUESTS, []), partial(many, run, count=0))
    return both(first, second)


def llama_adapters(run: Run) -> Section:
    """llama.cpp with adapters on the weights as they are. It computes requests of one adapter together."""
    kind = llama_gguf.AS_THEY_ARE
    with exported(run) as folders:
        first = alone(larger_peers.llama(run.base, kind, 1, folders), partial(one, run, count=ADAPTERS))
        many_of = partial(many, run, count=ADAPTERS)
        second = alone(larger_peers.llama(run.base, kind, REQUESTS, folders), many_of)
    return both(first, second)


def both(first: Section, second: Section) -> Section:
    """One section of two; what both have is the second's."""
    contestants, notes = first.contestants + second.contestants, first.notes + second.notes
    return Section(first.facts | second.facts, contestants, notes)


def transformers(run: Run) -> Section:
    """transformers alone."""
    return alone(larger_peers.transformers(run.base), partial(loads, run, (0,)))


def peft(run: Run) -> Section:
    """PEFT's mixed batch."""
    return alone(larger_peers.transformers(run.base, ADAPTERS), partial(loads, run, (ADAPTERS,)))


SECTIONS: Mapping[str, Callable[[Run], Section]] = {
    "start": start,
    "decode": decode,
    "prompt": prompt,
    "int8": partial(quantized, "int8"),
    "int4": partial(quantized, "int4"),
    VLLM: vllm,
    VLLM_MIXED: vllm_adapters,
    **{name: partial(llama, kind) for kind, name in LLAMA.items()},
    LLAMA_MIXED: llama_adapters,
    TRANSFORMERS: transformers,
    PEFT: peft,
}


if __name__ == "__main__":
    main()
