"""Peers of `benchmarks.speculation`: llama.cpp's lookups and vLLM's n-grams, without and with them.

A peer has the same base and adapters, and a process for each way, of which one works at a time. Requests
come one by one: a prompt is read, so that it is in the cache, and asked for one token and for its whole
answer. Answers are free and end where the model ends them: peers know no constraint of an adapter.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks import larger_peers, llama_cpp, llama_gguf
from benchmarks.contestants import Entry, Field, told
from benchmarks.sections import Section
from router.folders import cache_folder

OFF = "off"
PART = 8  # prompts of an adapter until another way has its turn
LONGEST = 4096  # tokens of a request
SHORT = ("--spec-ngram-simple-size-n", "3", "--spec-ngram-simple-size-m", "8")
SIMPLE = ("--spec-type", "ngram-simple", "--spec-draft-n-max", "64")  # as docs/speculative.md has it
LLAMA: Mapping[str, Sequence[str]] = {
    OFF: (),
    "ngram-simple": SIMPLE,
    "ngram-simple, 3 tokens": (*SIMPLE, *SHORT),
    "ngram-cache": ("--spec-type", "ngram-cache"),
}
# As vLLM's page on n-gram speculation has it: 4 tokens have to match.
NGRAM = {"method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_max": 4}
VLLM: Mapping[str, Mapping[str, Any]] = {
    OFF: {},
    "ngram": NGRAM,
    "ngram, 2 to 4 tokens": NGRAM | {"prompt_lookup_min": 2},
}
Lists = dict[str, list[Any]]  # as `answering.one_by_one` has them


@dataclass(frozen=True, slots=True)
class AdapterPrompts:
    """Prompts of one adapter as token ids, and the most tokens of an answer."""

    prompts: Sequence[Sequence[int]]
    most: int


def llama(work: Mapping[str, AdapterPrompts], base: Path, folders: Sequence[Path]) -> Section:
    """llama.cpp's server with the adapters, a slot for one request. Raises Missing and Died."""
    into = cache_folder() / "shapes"
    model = llama_gguf.made(base, llama_gguf.AS_THEY_ARE, into)
    loras = [llama_gguf.adapter(base, folder, into / f"{folder.name}-lora.gguf") for folder in folders]
    entries = {
        way: Entry(
            f"llama.cpp, {way}",
            llama_cpp.server(model, 1, LONGEST, loras, *options),
            why=f"{llama_cpp.WHY}; {' '.join(options)}",
        )
        for way, options in LLAMA.items()
    }
    return _measured(work, entries)


def vllm(work: Mapping[str, AdapterPrompts], base: Path, folders: Sequence[Path]) -> Section:
    """vLLM for CPU with the adapters. Raises Missing and Died."""
    known = larger_peers.vllm(base, list(folders))
    entries = {}
    for way, config in VLLM.items():
        said = ["--speculative", json.dumps(config)] if config else []
        command = [*known.command, "--cached", *said]
        why = " ".join([f"{known.why}; prefix caching", *said])
        entries[way] = replace(known, name=f"vLLM, {way}", command=command, why=why)
    return _measured(work, entries)


def _measured(work: Mapping[str, AdapterPrompts], entries: Mapping[str, Entry]) -> Section:
    """Facts: {"ways": {way: {adapter: means of an answer}}, "requests": of each adapter}."""
    found: dict[str, dict[str, Any]] = {way: {} for way in entries}
    with Field() as field:
        for entry in entries.values():
            field.start(entry)
        for number, (name, asked) in enumerate(work.items()):
            with told(name, None):
                answers = _in_turns(field, entries, asked, number)
            for way, lists in answers.items():
                found[way][name] = _means(lists, answers[OFF])
        requests = max(len(asked.prompts) for asked in work.values())
        return Section({"ways": found, "requests": requests}, field.rows(), field.notes())


def _in_turns(
    field: Field, entries: Mapping[str, Entry], asked: AdapterPrompts, adapter: int
) -> dict[str, Lists]:
    """What each way gave; some prompts at a time, and the order of ways changes. The first one warms up."""
    found: dict[str, Lists] = {way: {} for way in entries}
    work = {"new": asked.most, "adapter": adapter, "one by one": True}
    for entry in entries.values():
        field.ask(entry.name, work | {"prompts": asked.prompts[:1]})
    ways = list(entries)
    for start in range(0, len(asked.prompts), PART):
        part = work | {"prompts": asked.prompts[start : start + PART]}
        for way in ways:
            for key, values in field.ask(entries[way].name, part).items():
                found[way].setdefault(key, []).extend(values)
        ways.reverse()
    return found


def _means(lists: Lists, plain: Lists) -> dict[str, float]:
    """Of an answer: tokens, milliseconds, those behind the first token, and whether it is as without."""
    behind = [whole - first for whole, first in zip(lists["whole"], lists["first"], strict=True)]
    return {
        "tokens": mean(map(len, lists["answers"])),
        "ms": 1e3 * mean(lists["whole"]),
        "behind": 1e3 * mean(behind),
        "same": mean(a == b for a, b in zip(lists["answers"], plain["answers"], strict=True)),
    }
