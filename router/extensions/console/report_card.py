"""A report card (report.json) as its page shows it. The author of the file may have put anything into it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MOST_ROWS = 24  # of any table
MOST_CHARS = 600  # of a text
ARMS = (
    ("base", "base"),
    ("base_with_examples", "base with examples"),
    ("adapter", "adapter"),
)
GAINS = (("adapter - base", "over the base"), ("adapter - base_with_examples", "over the base with examples"))


@dataclass(frozen=True, slots=True)
class CardInterval:
    """A value with its 95 % interval, and the digits that it is worth."""

    value: float
    low: float
    high: float
    digits: int = 3

    def __str__(self) -> str:
        return f"{self.value:.{self.digits}f}"

    @property
    def interval(self) -> str:
        """The interval alone."""
        return f"{self.low:.{self.digits}f} to {self.high:.{self.digits}f}"

    @property
    def signed(self) -> str:
        """Of a difference."""
        return f"{self.value:+.{self.digits}f}"


@dataclass(frozen=True, slots=True)
class Card:
    """What there is to show; what the file does not say is empty."""

    metric: str
    reading: str
    rows: int
    arms: Sequence[Mapping[str, Any]]
    gains: Sequence[tuple[str, CardInterval]]
    regressions: Sequence[Mapping[str, Any]]
    splits: Sequence[Mapping[str, Any]]
    samples: Sequence[Mapping[str, str]]
    facts: Sequence[tuple[str, str]]


def card_of(data: bytes | None) -> Card | None:
    """The card; None where there is none, or no JSON."""
    try:
        report = json.loads(data) if data else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(report, dict):
        return None
    digits = min(max(int(number(report.get("scale"), 3)), 0), 6)
    return Card(
        metric=text(report.get("metric")),
        reading=text(report.get("reading")),
        rows=int(number(at(report, "data", "asked"), number(at(report, "data", "rows")))),
        arms=arms_of(report, digits),
        gains=[
            (title, span)
            for name, title in GAINS
            if (span := span_of(report, digits, "gains", name, "score"))
        ],
        regressions=[
            {
                "what": text(one.get("what")),
                "by": span_of(one, 3),
                "margin": number(one.get("margin")),
                "worse": one.get("worse") is True,
            }
            for one in tables(report.get("regressions"))
        ],
        splits=splits_of(report),
        samples=[
            {name: text(one.get(name)) for name in ("prompt", "gold", "base", "adapter")}
            for one in tables(report.get("samples"))
        ],
        facts=facts_of(report),
    )


def arms_of(report: Mapping[str, Any], digits: int) -> list[dict[str, Any]]:
    """Who answered the test rows, and how well."""
    found: list[dict[str, Any]] = []
    for name, title in ARMS:
        score = span_of(report, digits, "arms", name, "score")
        if score is not None:
            arm = at(report, "arms", name)
            found.append(
                {
                    "title": title,
                    "mine": name == "adapter",
                    "score": score,
                    "loss": span_text(arm.get("loss_per_gold_token")),
                    "prompt_tokens": span_text(arm.get("prompt_tokens"), 1),
                    "answer_tokens": span_text(arm.get("answer_tokens"), 1),
                }
            )
    top = max((arm["score"].high for arm in found), default=0.0)
    for arm in found:
        arm["part"] = max(arm["score"].value, 0.0) / top if top > 0 else 0.0
    return found


def splits_of(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """How the adapter does on what it learned from, and on what it did not."""
    found = []
    for name in ("train", "valid", "test"):
        one = at(report, "splits", name)
        if isinstance(one, dict):
            found.append(
                {
                    "name": name,
                    "rows": int(number(one.get("rows"))),
                    "loss": span_of({**one, "value": one.get("loss")}, 3),
                    "exact": span_text(one.get("exact")),
                }
            )
    return found


def facts_of(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was measured, on what."""
    facts = (
        ("Weights", text(at(report, "adapter", "weights_sha256"))[:12]),
        ("Base", text(at(report, "base", "model"))),
        ("Test data", text(at(report, "data", "file"))),
        ("Machine", text(at(report, "machine", "device"))),
        ("Date", text(at(report, "machine", "date"))),
        ("Engine", " ".join(filter(None, (text(at(report, "engine", k)) for k in ("dtype", "kernels"))))),
        ("Command", text(report.get("command"))),
    )
    return [(name, value) for name, value in facts if value]


# -- Values of which nobody knows what they are


def at(value: Any, *path: str) -> Any:
    """What is there; None where nothing is."""
    for step in path:
        value = value.get(step) if isinstance(value, dict) else None
    return value


def number(value: Any, default: float = 0.0) -> float:
    """A finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return default
    try:
        found = float(value)
    except OverflowError:
        return default
    return found if math.isfinite(found) and abs(found) < 1e15 else default


def text(value: Any) -> str:
    """A text of some length."""
    shown = value if isinstance(value, str) else ""
    return shown if len(shown) <= MOST_CHARS else shown[: MOST_CHARS - 1] + "…"


def tables(value: Any) -> list[dict[str, Any]]:
    """The tables in a list, so many of them."""
    return [one for one in value if isinstance(one, dict)][:MOST_ROWS] if isinstance(value, list) else []


def span_of(value: Any, digits: int, *path: str) -> CardInterval | None:
    """A value with its interval."""
    found = at(value, *path) if path else value
    if not isinstance(found, dict) or found.get("value") is None:
        return None
    middle = number(found["value"])
    return CardInterval(middle, number(found.get("low"), middle), number(found.get("high"), middle), digits)


def span_text(value: Any, digits: int = 3) -> str:
    """A number, or a dash."""
    return "–" if value is None else f"{number(value):.{digits}f}"
