"""What `plugins doctor` tries on each classifier: the calls a server makes, with their limits."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from router.types import AdapterProfile, Request, Turn

if TYPE_CHECKING:
    from router.plugins import Registration
    from router.routing.scores import Answer

CALLS = 100
PROMPTS = (
    "Which ICD-10-CM chapter does Beard ringworm belong to?",
    "Translate to French: high-level FTP client library for Python",
    "Write a Python function that reverses a string.",
    "Who may terminate a lease early?",
    "Summarise: the meeting was moved to Friday because the room was taken.",
    "WHAT DID THE COMPANY EARN PER SHARE?",
    "e" * 4000,
    "¿Qué hora es? 你好 🙂",
)


@dataclass(frozen=True, slots=True)
class Check:
    """One thing tried."""

    plugin: str
    classifier: str
    check: str
    ok: bool
    detail: str = ""


def requests() -> list[Request]:
    """Requests of several kinds, sizes and scripts."""
    return [Request(f"doctor-{i}", turns=(Turn("user", text),)) for i, text in enumerate(PROMPTS)]


def examine(registered: Registration, profiles: Sequence[AdapterProfile]) -> list[Check]:
    """Fit, warm up, then call it as a server would."""

    def check(name: str, ok: bool, detail: str = "") -> Check:
        return Check(registered.plugin, registered.name, name, ok, detail)

    trials: list[tuple[str, Callable[[], None]]] = [
        ("fit", lambda: registered.classifier.fit(profiles)),
        ("warm-up", registered.classifier.warmup),
    ]
    checks = []
    for name, trial in trials:
        error = _raised(trial)
        checks.append(check(name, not error, error))
    batch, error = _classify(registered, requests())
    checks.append(check("answers", not error, error))
    if error:
        return checks
    checks.append(check("batch equals single calls", *_same_alone(registered, batch)))
    again, _ = _classify(registered, requests())
    checks.append(check("same answer twice", again == batch))
    checks.append(check("speed", *_speed(registered)))
    return checks


def _raised(trial: Callable[[], object]) -> str:
    try:
        trial()
    except Exception as error:
        return f"raised {type(error).__name__}: {error}"
    return ""


def _call(registered: Registration, batch: list[Request]) -> object:
    returned = registered.classifier.classify_batch(batch)
    return asyncio.run(returned) if registered.is_async else returned  # type: ignore[arg-type]


def _classify(registered: Registration, batch: list[Request]) -> tuple[tuple[Answer, ...], str]:
    """Answers as routing reads them, or what is wrong with them."""
    from router.routing.scores import answers

    try:
        returned = _call(registered, batch)
    except Exception as error:
        return (), f"raised {type(error).__name__}: {error}"
    read = answers(returned, len(batch))
    bad = next((i for i, answer in enumerate(read) if answer.error), None)
    if bad is None:
        return read, ""
    shown = repr(returned)[:120]
    return (), f"for {PROMPTS[bad][:40]!r}: not a list of {len(batch)} Scores or None in range: {shown}"


def _same_alone(registered: Registration, batch: tuple[Answer, ...]) -> tuple[bool, str]:
    for request, together in zip(requests(), batch, strict=True):
        alone, error = _classify(registered, [request])
        if error or not _close(alone[0], together):
            return False, f"{request.text[:40]!r} is answered otherwise alone"
    return True, ""


def _close(one: Answer, other: Answer) -> bool:
    if one.declined != other.declined or one.confidences.keys() != other.confidences.keys():
        return False
    return all(abs(one.confidences[label] - other.confidences[label]) < 1e-3 for label in one.confidences)


def _speed(registered: Registration) -> tuple[bool, str]:
    """The 99th percentile of warm single calls must leave the timeout room."""
    one, taken = requests()[:1], []
    for _ in range(CALLS):
        start = time.perf_counter()
        _call(registered, one)
        taken.append(time.perf_counter() - start)
    p99 = statistics.quantiles(taken, n=100)[98]
    median = statistics.median(taken)
    detail = (
        f"median {median * 1e3:.2f} ms, p99 {p99 * 1e3:.2f} ms, timeout {registered.timeout * 1e3:.0f} ms"
    )
    return p99 < registered.timeout, detail
