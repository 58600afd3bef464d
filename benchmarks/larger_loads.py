"""What every contestant of `benchmarks.larger` is asked: one request, 16 at once, long prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

from benchmarks.answering import NEW_TOKENS, PROMPT_TOKENS, RANK, REQUESTS, prompts

ADAPTERS = 8
ALONE_TOKENS = 48  # of one request, after its first
LENGTHS = (512, 2000, 4000)  # tokens of a prompt
LONGEST = LENGTHS[-1] + 96  # tokens of a request
LONG_ENOUGH = 45.0  # seconds of one load after which there is no further round
SHORT_TOKENS = 9  # of each of 16 requests in the round that shows whether whole answers take too long
SHORT_SECONDS = 12.0  # of that round: below, whole answers are asked for at once
TOO_LONG = 60.0  # seconds of one load that is not measured whole
Found = dict[str, Any]
Ask = Callable[[Mapping[str, Any]], dict[str, Any]]


def warm(ask: Ask, vocabulary: int, adapters: int) -> None:
    """A short round, which is not counted."""
    asked = prompts(vocabulary, seed=999, count=2)
    ask({"prompts": asked, "new": 3, "adapters": adapters})


def one_request(ask: Ask, vocabulary: int, adapters: int, rounds: int) -> Found:
    """Milliseconds a token of one request: an answer of many tokens against one of a single token."""
    steps = []
    for run in range(rounds):
        first, second = prompts(vocabulary, seed=3000 + 10 * run + adapters, count=2)
        second = (second * 2)[: len(first)]
        short = ask({"prompts": [second], "new": 1, "adapters": adapters})["seconds"]
        whole = ask({"prompts": [first], "new": 1 + ALONE_TOKENS, "adapters": adapters})["seconds"]
        steps.append(1e3 * (whole - short) / ALONE_TOKENS)
        if whole > LONG_ENOUGH:
            break
    return {"ms": median(steps), "all": steps}


def against_memory(ask: Ask, vocabulary: int, adapters: int, rounds: int) -> Found:
    """The same of this engine alone, beside the milliseconds that it takes to read what a step reads."""
    steps, reads = [], []
    for run in range(rounds):
        asked = prompts(vocabulary, seed=5000 + 10 * run + adapters, count=1)
        work = {"prompts": asked, "new": 1 + ALONE_TOKENS, "adapters": adapters, "alone": True}
        answer = ask(work)
        steps.append(1e3 * answer["step"])
        reads.append(1e3 * answer["memory"])
    shares = [read / step for read, step in zip(reads, steps, strict=True)]
    return {"ms": median(steps), "all": steps, "memory ms": median(reads), "share": median(shares)}


def many_requests(ask: Ask, vocabulary: int, adapters: int, rounds: int) -> Found:
    """Tokens a second of 16 requests at once, their prompts included.

    Where whole answers would take longer than TOO_LONG, "shortened" is true and their time is that of the
    first tokens and so many steps as the rest would take.
    """
    if seconds := _too_long(ask, vocabulary, adapters):
        return {"speed": REQUESTS * NEW_TOKENS / seconds, "shortened": True}
    speeds: list[float] = []
    for run in range(rounds):
        asked = prompts(vocabulary, seed=4000 + 10 * run + adapters)
        answer = ask({"prompts": asked, "new": NEW_TOKENS, "adapters": adapters})
        speeds.append(answer["tokens"] / answer["seconds"])
        if answer["seconds"] > LONG_ENOUGH:
            break
    return {"speed": median(speeds), "all": speeds}


def _too_long(ask: Ask, vocabulary: int, adapters: int) -> float:
    """Seconds that 16 whole answers would take, if they are too many; else 0. It is their warm-up, too."""
    times = {}
    for tokens in (SHORT_TOKENS, 1):
        asked = prompts(vocabulary, seed=4500 + tokens + 10 * adapters)
        times[tokens] = ask({"prompts": asked, "new": tokens, "adapters": adapters})["seconds"]
        if times[SHORT_TOKENS] < SHORT_SECONDS:
            return 0.0
    step = (times[SHORT_TOKENS] - times[1]) / (SHORT_TOKENS - 1)
    whole = times[1] + (NEW_TOKENS - 1) * step
    return whole if whole > TOO_LONG else 0.0


def long_prompts(ask: Ask, vocabulary: int, rounds: int) -> dict[str, float]:
    """Seconds from a prompt to its first token, by the tokens of the prompt; a length may be left out."""
    found: dict[str, float] = {}
    rate = 0.0
    for length in LENGTHS:
        if rate and length / rate > TOO_LONG:
            break
        times: list[float] = []
        for run in range(rounds):
            asked = long(vocabulary, 10 * length + run, length)
            times.append(ask({"prompts": [asked], "new": 1, "adapters": 0})["seconds"])
            if times[-1] > LONG_ENOUGH / 3:
                break
        found[str(length)], rate = min(times), length / min(times)
    return found


def long(vocabulary: int, seed: int, length: int) -> list[int]:
    """Random tokens that no contestant has seen."""
    pieces = prompts(vocabulary, seed=seed, count=length // (PROMPT_TOKENS - 8) + 1)
    return [token for piece in pieces for token in piece][:length]


def workload(rounds: int) -> str:
    """One sentence a load."""
    return (
        f"One request: {PROMPT_TOKENS}±8 random prompt tokens, greedy, milliseconds from token to token. "
        f"{REQUESTS} requests: such prompts at once, {NEW_TOKENS} new tokens each, tokens a second for the "
        f"whole, prompts included; {ADAPTERS} adapters of rank {RANK} on all linear layers, dealt in turn. "
        "A prompt: seconds until its first token. "
        f"Medians of at most {rounds} rounds after a short warm-up, of prompts the shortest time. A load of "
        f"more than {LONG_ENOUGH:.0f} s is measured once. *Shortened*: whole answers of {REQUESTS} requests "
        f"would take more than {TOO_LONG:.0f} s; their time is computed from that of the prompts and of the "
        f"first {SHORT_TOKENS} tokens. A prompt that would take more than {TOO_LONG:.0f} s is left out. Each "
        "contestant is alone on the machine, in a process of its own, one after the other."
    )
