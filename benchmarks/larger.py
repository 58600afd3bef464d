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
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from pydantic import ValidationError

from benchmarks import larger_peers, larger_start
from benchmarks.contestants import Died, Entry, Field, ending, told
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
from benchmarks.larger_page import Section, machine, page, remember, today
from benchmarks.larger_peers import Missing
from benchmarks.larger_shapes import SHAPES, WEIGHTS, Shape, made, remove, sites_of
from benchmarks.workload import export, random_adapter
from router.config import Settings
from router.errors import RouterError

PEERS = ("vllm", "llama.cpp", "transformers", "peft")
GROUPS = {"memory": ("start",), "peers": PEERS}
OneRequest = Callable[[Ask, int, int, int], Found]
GGUF_KINDS = ("bf16", "q8_0", "q4_k_m")


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
        help="what is measured (default: all); memory is part of start; peers: " + ", ".join(PEERS),
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
        for name in dict.fromkeys(wanted):
            with told(f"{shape.name}: {name}", None):
                found = measured(name, run)
            remember(shape, name, found)
            print(f"{name}: {found.skipped or 'measured'}; written to", page(shape), file=sys.stderr)
    print(page(shape).read_text())
    if args.clean:
        remove(run.base)


def prepare(run: Run) -> None:
    """Everything that is made or installed once, so that a measurement finds it."""
    for what in (
        partial(larger_peers.vllm, run.base, []),
        *(partial(larger_peers.llama, run.shape, run.base, kind) for kind in GGUF_KINDS),
    ):
        try:
            what()
        except Missing as error:
            print(f"left out: {error}", file=sys.stderr)


def measured(name: str, run: Run) -> Section:
    """One section; where it cannot be measured, why."""
    try:
        found = SECTIONS[name](run)
    except (Missing, Died) as error:
        found = Section(skipped=str(error))
    return replace(found, rounds=run.rounds, date=today(), machine=machine())


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


def alone(run: Run, entry: Entry, loads: Callable[[Field, Entry], dict[str, Any]]) -> Section:
    """One contestant, alone on the machine, for the loads."""
    with Field() as field:
        about = field.start(entry)
        facts = loads(field, entry) | {"resident": field.resident(entry.name)}
        facts |= {name: about[name] for name in ("kernels", "precision") if name in about}
        return Section(facts, field.rows(), field.notes())


def speeds(
    run: Run, field: Field, entry: Entry, counts: tuple[int, ...], one: OneRequest = one_request
) -> dict[str, Any]:
    """One request and 16, by the number of adapters."""
    ask = partial(field.ask, entry.name)
    facts: dict[str, Any] = {}
    for count in counts:
        warm(ask, run.vocabulary, count)
        facts[f"one, {min(count, 1)}"] = one(ask, run.vocabulary, min(count, 1), run.rounds)
        facts[f"many, {count}"] = many_requests(ask, run.vocabulary, count, run.rounds)
    return facts


def decode(run: Run) -> Section:
    """This engine: one request against memory, 16 at once."""

    def loads(field: Field, entry: Entry) -> dict[str, Any]:
        return speeds(run, field, entry, (0, ADAPTERS), against_memory)

    return alone(run, larger_peers.this_engine(run.base, "none"), loads)


def prompt(run: Run) -> Section:
    """This engine: long prompts against the peak of the multipliers."""

    def loads(field: Field, entry: Entry) -> dict[str, Any]:
        ask = partial(field.ask, entry.name)
        before = ask({"peak": True})
        warm(ask, run.vocabulary, 0)
        times = long_prompts(ask, run.vocabulary, run.rounds)
        peak = max(before, ask({"peak": True}), key=lambda one: one["rate"])
        return {"prompts": times, "peak": peak}

    return alone(run, larger_peers.this_engine(run.base, "none"), loads)


def quantized(way: str, run: Run) -> Section:
    """This engine with weights in fewer bits."""
    try:
        Settings(model=str(run.base), quantize=way)  # type: ignore[arg-type]
    except (RouterError, ValidationError):
        raise Missing(f"this version has no quantize = {way}") from None

    def loads(field: Field, entry: Entry) -> dict[str, Any]:
        facts = speeds(run, field, entry, (0, ADAPTERS))
        return facts | {"prompts": long_prompts(partial(field.ask, entry.name), run.vocabulary, 1)}

    return alone(run, larger_peers.this_engine(run.base, way), loads)


def vllm(run: Run) -> Section:
    """vLLM without adapters, and in a second process with them: adapters slow its base."""
    with tempfile.TemporaryDirectory() as folder:
        artifacts = [random_adapter(str(number), sites_of(run.shape)) for number in range(ADAPTERS)]
        folders = [export(artifact, Path(folder)) for artifact in artifacts]
        del artifacts
        plain = alone(run, larger_peers.vllm(run.base, []), partial(plain_loads, run))
        mixed = alone(run, larger_peers.vllm(run.base, folders), partial(mixed_loads, run))
    facts = mixed.facts | plain.facts | {"resident with adapters": mixed.facts["resident"]}
    return Section(facts, plain.contestants, [*plain.notes, *mixed.notes])


def plain_loads(run: Run, field: Field, entry: Entry) -> dict[str, Any]:
    """Everything without adapters."""
    facts = speeds(run, field, entry, (0,))
    return facts | {"prompts": long_prompts(partial(field.ask, entry.name), run.vocabulary, 1)}


def mixed_loads(run: Run, field: Field, entry: Entry) -> dict[str, Any]:
    """One request with an adapter, and 16 with 8."""
    return speeds(run, field, entry, (ADAPTERS,))


def llama(run: Run) -> Section:
    """llama.cpp on the weights as they are and in its own 8 and 4 bits."""
    facts: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    for kind in GGUF_KINDS:
        found = alone(run, larger_peers.llama(run.shape, run.base, kind), partial(plain_loads, run))
        facts[kind] = found.facts
        rows += found.contestants
        notes += found.notes
    return Section(facts, rows, notes)


def transformers(run: Run) -> Section:
    """transformers alone."""
    return alone(run, larger_peers.transformers(run.base), partial(plain_loads, run))


def peft(run: Run) -> Section:
    """PEFT's mixed batch."""
    return alone(run, larger_peers.transformers(run.base, ADAPTERS), partial(mixed_loads, run))


SECTIONS: Mapping[str, Callable[[Run], Section]] = {
    "start": start,
    "decode": decode,
    "prompt": prompt,
    "int8": partial(quantized, "int8"),
    "int4": partial(quantized, "int4"),
    "vllm": vllm,
    "llama.cpp": llama,
    "transformers": transformers,
    "peft": peft,
}


if __name__ == "__main__":
    main()
