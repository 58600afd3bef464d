"""`probes.jsonl`: prompts with the answers expected of them, run when an adapter is loaded.

One JSON object a line: {"prompt": …, "expect": …}, optionally "match" (exact, prefix or contains; prefix
is the default) and "max_tokens".
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from router.registry.format import limits
from router.registry.format.findings import Code, Finding, Findings
from router.registry.format.folder import PROBES
from router.registry.format.parsing import JsonError, load_json
from router.registry.format.text import nearest, show

KEYS = ("prompt", "expect", "match", "max_tokens")
MOST_TOKENS = 512


class Match(StrEnum):
    """How an answer is compared with what is expected; surrounding white space never counts."""

    EXACT = "exact"
    PREFIX = "prefix"
    CONTAINS = "contains"


@dataclass(frozen=True, slots=True)
class Probe:
    """One prompt and what the adapter, decoding greedily, must answer."""

    prompt: str
    expect: str
    match: Match = Match.PREFIX
    max_tokens: int = 32

    def passes(self, answer: str) -> bool:
        """Whether `answer` is what was expected."""
        got, expected = answer.strip(), self.expect.strip()
        if self.match is Match.EXACT:
            return got == expected
        return got.startswith(expected) if self.match is Match.PREFIX else expected in got


def parse_probes(data: bytes) -> tuple[tuple[Probe, ...], tuple[Finding, ...]]:
    """Read probes.jsonl. Never raises: a line that is wrong becomes a finding."""
    found = Findings()
    if len(data) > limits.PROBES_BYTES:
        message = f"has {len(data)} bytes, at most {limits.PROBES_BYTES} are allowed"
        found.refuse(Code.PROBE_INVALID, message, PROBES)
        return (), tuple(found)
    if data.count(b"\n") > limits.PROBE_LINES:
        found.refuse(Code.PROBE_INVALID, f"has more than {limits.PROBE_LINES} lines", PROBES)
        return (), tuple(found)
    lines = [(number, line) for number, line in enumerate(data.split(b"\n"), 1) if line.strip()]
    if len(lines) > limits.PROBES:
        message = f"has {len(lines)} probes, at most {limits.PROBES} are allowed"
        found.refuse(Code.PROBE_INVALID, message, PROBES)
        return (), tuple(found)
    probes = [_probe(line, f"{PROBES} line {number}", found) for number, line in lines]
    return tuple(p for p in probes if p is not None), tuple(found)


def _probe(line: bytes, where: str, found: Findings) -> Probe | None:
    try:
        value = load_json(line)
    except JsonError as error:
        found.refuse(Code.PROBE_INVALID, str(error), where)
        return None
    problem = _problem(value)
    if problem:
        found.refuse(Code.PROBE_INVALID, problem, where)
        return None
    return Probe(
        prompt=value["prompt"],
        expect=value["expect"],
        match=Match(value.get("match", Match.PREFIX)),
        max_tokens=value.get("max_tokens", 32),
    )


def _problem(value: Any) -> str:
    if not isinstance(value, dict):
        return f"must be an object, is {show(value)}"
    for key in value:
        if key not in KEYS:
            return f"unknown key {show(key)}" + (nearest(key, KEYS) or f"; known: {', '.join(KEYS)}")
    for key in ("prompt", "expect"):
        text = value.get(key)
        if not isinstance(text, str) or not text.strip() or len(text) > limits.PROMPT_CHARS:
            return f"{key} must be a string of 1 to {limits.PROMPT_CHARS} characters, is {show(text)}"
    match, tokens = value.get("match", "prefix"), value.get("max_tokens", 32)
    if not isinstance(match, str) or match not in tuple(Match):
        return f"match must be one of {', '.join(Match)}, is {show(match)}"
    if isinstance(tokens, bool) or not isinstance(tokens, int) or not 1 <= tokens <= MOST_TOKENS:
        return f"max_tokens must be a whole number from 1 to {MOST_TOKENS}, is {show(tokens)}"
    return ""
