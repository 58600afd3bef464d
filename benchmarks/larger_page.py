"""The page of `benchmarks.larger`: the newest measurement of each section, and the goals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.larger_loads import ADAPTERS, LENGTHS, REQUESTS, workload
from benchmarks.larger_shapes import Shape
from benchmarks.sections import Sections, abouts, tables
from router.engine.resources import CPU_CACHE_TOKENS

Facts = dict[str, Any]
VLLM, VLLM_MIXED, TRANSFORMERS, PEFT = "vllm-base", "vllm-adapters", "transformers", "peft"
LLAMA, LLAMA_MIXED = {kind: f"llama.cpp-{kind}" for kind in ("bf16", "q8_0", "q4_k_m")}, "llama.cpp-adapters"
PEERS = (  # name, weights, its sections without and with adapters
    ("vLLM", "bf16", VLLM, VLLM_MIXED),
    *(("llama.cpp", kind, name, LLAMA_MIXED if kind == "bf16" else "") for kind, name in LLAMA.items()),
    ("transformers", "bf16", TRANSFORMERS, ""),
    ("PEFT", "bf16", "", PEFT),
)
GB = 1e9
NOTHING = "-"
OURS = "this engine"
SERVING_BESIDE_READING = 2.0  # seconds
MEMORY_SHARE, MEMORY_BESIDE = 1.15, 500e6  # of the weights; bytes beside them and the cache
MEMORY_TIME = 0.85
TO_VLLM, TO_VLLM_MIXED, TO_BASE = 2.5, 10.0, 0.97
PEAK_SHARE, PEAK_LENGTH = 0.7, 2000


def page(shape: Shape) -> Path:
    """The page of a shape."""
    return report.RESULTS / f"larger-{shape.name}.md"


def text(shape: Shape, sections: Sections) -> str:
    """The whole page."""
    done = {name: one for name, one in sections.items() if not one.skipped}
    cache = shape.cache_bytes(_cache_tokens(shape))
    lines = [
        f"# larger: the shape of {shape.published}",
        "",
        f"{shape.parameters / 1e6:,.0f} million random weights, {shape.weight_bytes / GB:.2f} GB in "
        f"bfloat16; a KV cache of {_cache_tokens(shape):,} tokens is {cache / GB:.2f} GB. "
        f"Command: `python -m benchmarks.larger --shape {shape.name}`.",
        "",
        workload(max((one.rounds for one in done.values()), default=0)),
        "",
        *(f"- {goal}" for goal in goals(shape, done)),
    ]
    facts = {name: one.facts for name, one in done.items()}
    lines += tables(
        (
            ("Start and memory", start_rows(facts)),
            ("One request and 16", speed_rows(facts)),
            ("Prompts", prompt_rows(shape, facts)),
            ("Contestants", [row for one in done.values() for row in one.contestants]),
        )
    )
    return "\n".join([*lines, *abouts(sections), ""])


def goals(shape: Shape, done: Sections) -> Iterator[str]:
    """A line for each, met or missed, of the sections that are there."""
    facts = {name: one.facts for name, one in done.items()}
    if start := facts.get("start"):
        yield from _start_goals(shape, start)
    if ours := facts.get("decode"):
        one, tuned = ours["one, 0"], ours["one, 1"]
        rate = shape.weight_bytes / one["memory ms"] / 1e6
        yield _goal(
            f"one request, time to read all weights ({one['memory ms']:.1f} ms, {rate:.0f} GB/s) / a token",
            one["share"],
            MEMORY_TIME,
        )
        yield f"one request with an adapter, time to read what it reads / a token: {tuned['share']:.2f}"
        yield _goal(
            f"{ADAPTERS} adapters / no adapter, {REQUESTS} requests",
            _many(ours, ADAPTERS) / _many(ours, 0),
            TO_BASE,
        )
        if peer := facts.get(VLLM):
            yield _goal(f"{REQUESTS} requests / vLLM", _many(ours, 0) / _many(peer, 0), TO_VLLM)
        if peer := facts.get(VLLM_MIXED):
            yield _goal(
                f"{REQUESTS} requests with {ADAPTERS} adapters / vLLM",
                _many(ours, ADAPTERS) / _many(peer, ADAPTERS),
                TO_VLLM_MIXED,
            )
        if peer := facts.get(PEFT):
            ratio = _many(ours, ADAPTERS) / _many(peer, ADAPTERS)
            yield f"{REQUESTS} requests with {ADAPTERS} adapters / PEFT: {ratio:.1f}"
    if ours := facts.get("prompt"):
        share = peak_share(shape, ours, PEAK_LENGTH)
        peak = ours["peak"]
        size = " x ".join(map(str, peak["size"]))
        yield (
            f"peak of the multipliers ({peak['unit']}): {peak['rate'] / 1e9:.0f} GFLOP/s, "
            f"a product of {size} in cache by {peak['by']}"
        )
        if share is not None:
            yield _goal(f"a prompt of {PEAK_LENGTH:,} tokens, of that peak", share, PEAK_SHARE)


def _start_goals(shape: Shape, start: Facts) -> Iterator[str]:
    read, found = start["warm read"], start["warm"]
    limit = SERVING_BESIDE_READING + read
    yield (
        f"SERVING after {found['seconds']:.1f} s, of which reading the file once takes {read:.2f} s "
        f"(goal: at most {limit:.1f} s{_missed(found['seconds'] <= limit)})"
    )
    cache = shape.cache_bytes(_cache_tokens(shape))
    most = MEMORY_SHARE * shape.weight_bytes + cache + MEMORY_BESIDE
    for name, what in (("resident", "resident memory after the start"), ("peak", "its peak until then")):
        yield (
            f"{what}: {found[name] / GB:.2f} GB, or {found[name] / shape.weight_bytes:.2f} times the weights "
            f"(goal: at most {most / GB:.2f} GB, with {cache / GB:.2f} GB for a cache of which no page is in "
            f"use yet{_missed(found[name] <= most)})"
        )


def start_rows(facts: Mapping[str, Facts]) -> list[dict[str, Any]]:
    """Starts with the file in the page cache and from the disk."""
    if "start" not in facts:
        return []
    start = facts["start"]
    cold = start["cold read"]
    reads = {"warm": start["warm read"], "cold": cold["seconds"]}
    names = {"warm": "the file in the page cache", "cold": "the file on the disk"}
    return [
        {
            "start": names[way],
            "reading it, s": reads[way],
            "SERVING, s": start[way]["seconds"],
            "first token after that, s": start[way]["first_token"],
            "resident, GB": start[way]["resident"] / GB,
            "of it not of files": start[way]["anonymous"] / GB,
            "peak, GB": start[way]["peak"] / GB,
            "of it not of files, too": start[way]["peak_anonymous"] / GB,
        }
        for way in ("warm", "cold")
    ]


def arms(facts: Mapping[str, Facts]) -> Iterator[tuple[str, str, Facts]]:
    """Contestants that were asked: name, how weights are held, what was found."""
    merged = {
        **facts.get("decode", {}),
        **{k: v for k, v in facts.get("prompt", {}).items() if k == "prompts"},
    }
    if merged:
        yield OURS, "bf16", merged
    for way in ("int8", "int4"):
        if way in facts:
            yield OURS, way, facts[way]
    for name, kind, plain, mixed in PEERS:
        if found := facts.get(mixed, {}) | facts.get(plain, {}):
            yield name, kind, found


def speed_rows(facts: Mapping[str, Facts]) -> list[dict[str, Any]]:
    """One row a contestant and way of its weights."""
    return [
        {
            "contestant": name,
            "weights": way,
            "one request, ms a token": _ms(found, 0),
            "with an adapter": _ms(found, 1),
            f"{REQUESTS} requests, tokens/s": _speed(found, 0),
            f"with {ADAPTERS} adapters": _speed(found, ADAPTERS),
            "resident, GB": found["resident"] / GB if "resident" in found else NOTHING,
        }
        for name, way, found in arms(facts)
        if any(key.startswith(("one,", "many,")) for key in found)
    ]


def prompt_rows(shape: Shape, facts: Mapping[str, Facts]) -> list[dict[str, Any]]:
    """Seconds until the first token by length, and the share of the peak where that is known."""
    peak = facts.get("prompt", {}).get("peak")
    rows = []
    for name, way, found in arms(facts):
        if "prompts" not in found:
            continue
        row: dict[str, Any] = {"contestant": name, "weights": way}
        for length in LENGTHS:
            row[f"{length:,} tokens, s"] = found["prompts"].get(str(length), NOTHING)
        if peak:
            for length in LENGTHS:
                share = peak_share(shape, {**found, "peak": peak}, length)
                row[f"of the peak, {length:,}"] = NOTHING if share is None else share
        rows.append(row)
    return rows


def peak_share(shape: Shape, found: Facts, length: int) -> float | None:
    """What a prompt makes of the peak; None where it was not measured."""
    seconds = found["prompts"].get(str(length))
    return (
        None if seconds is None else shape.prompt_operations(length) / seconds / float(found["peak"]["rate"])
    )


def _cache_tokens(shape: Shape) -> int:
    return min(CPU_CACHE_TOKENS, shape.context)


def _goal(what: str, value: float, target: float) -> str:
    digits = 1 if target >= 2 else 2
    return f"{what}: {value:.{digits}f} (goal: at least {target:g}{_missed(value >= target)})"


def _missed(met: bool) -> str:
    return ", met" if met else ", MISSED"


def _many(found: Facts, adapters: int) -> float:
    return float(found[f"many, {adapters}"]["speed"])


def _ms(found: Facts, adapters: int) -> Any:
    return found.get(f"one, {adapters}", {}).get("ms", NOTHING)


def _speed(found: Facts, adapters: int) -> Any:
    load = found.get(f"many, {adapters}", {"speed": NOTHING})
    return f"{load['speed']:.3g}, shortened" if load.get("shortened") else load["speed"]
