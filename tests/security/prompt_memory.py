"""A process that encodes prompts and says how much memory each took. Started by test_prompt_memory.py.

It reads a line of JSON for each, with texts given as what they repeat, and answers with one.
"""

from __future__ import annotations

import ctypes
import json
import re
import sys
from pathlib import Path
from typing import Any

import psutil

from router.engine.base import Prompt
from router.engine.prompt import PromptEncoder
from router.errors import InvalidRequest
from router.registry.format.manifest import parse_manifest
from router.types import Turn
from tests.engine import small_tokenizers

BODY = 2 << 20  # bytes


def repeated(unit: str, characters: int) -> str:
    return (unit * (characters // len(unit) + 1))[:characters]


def literal(text: str) -> str:
    """A TOML string; one with escapes would have too many of them to be accepted."""
    return f"'''\n{text}'''"


def manifest_of(asked: dict[str, Any]) -> str:
    """An adapter.toml with its texts as long as they may be."""
    unit = asked["unit"]
    room = repeated(unit, 16_000 - len("{prompt}"))
    cut = int(len(room) * asked["before"])
    examples = [repeated("word ", 3_999)] * 20
    return "\n".join(
        [
            f"[adapter]\ndescription = {json.dumps('d' * 1_000)}\nlicense = {json.dumps('l' * 200)}",
            f"[prompt]\nsystem = {literal(repeated(unit, 16_000))}",
            f"template = {literal(room[:cut] + '{prompt}' + room[cut:])}",
            f"[generation]\nmax_tokens = 1\nstop = {json.dumps(['s' * 256] * 16)}",
            f"[routing]\nexamples = {json.dumps(examples)}",
        ]
    )


def turns_of(asked: dict[str, Any]) -> tuple[Turn, ...]:
    """Messages that fill a body, the last of the user."""
    number, unit = asked["messages"], asked["unit"]
    characters = BODY // len(unit.encode()) * len(unit) // number
    text = asked["odd"] + repeated(unit, characters)
    return tuple(Turn("assistant" if (number - i) % 2 == 0 else "user", text) for i in range(number))


def peak(reset: bool = False) -> int:
    """Bytes of memory at most since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) << 10


def encoded(encoder: PromptEncoder, asked: dict[str, Any]) -> dict[str, Any]:
    manifest, findings = parse_manifest(manifest_of(asked).encode(), "a")
    assert findings == (), findings
    turns = turns_of(asked)
    prompt = Prompt(turns, template=manifest.prompt)
    if asked["raw"]:
        prompt = Prompt(raw="".join(turn.text for turn in turns))
    ctypes.CDLL(None).malloc_trim(0)
    before = psutil.Process().memory_info().rss
    peak(reset=True)
    try:
        tokens = encoder.encode(prompt, asked["most"])
        encoder.shared(prompt, tokens)
        end = "encoded"
    except InvalidRequest as error:
        end = type(error).__name__
    return {"bytes": max(0, peak() - before), "end": end}


def main() -> None:
    tokenizer: Any
    if sys.argv[1] in vars(small_tokenizers):
        tokenizer = getattr(small_tokenizers, sys.argv[1])()
    else:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=False)
    encoder = PromptEncoder(tokenizer)
    encoder.encode(Prompt((Turn("user", "warm up " * 1000),)), 100_000)
    for line in sys.stdin:
        print(json.dumps(encoded(encoder, json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
