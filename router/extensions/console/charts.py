"""Charts as SVG: lines over the slots of a range, made here, so that they need no script."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 600, 120  # of the view box; the page stretches it
Value = float | None


@dataclass(frozen=True, slots=True)
class ChartLine:
    """One line. `tone` is its CSS class, and `shown` what the legend says beside its name."""

    name: str
    tone: str
    values: Sequence[Value]
    shown: str


@dataclass(frozen=True, slots=True)
class DrawnLine:
    """A line as a path of SVG."""

    name: str
    tone: str
    shown: str
    path: str


@dataclass(frozen=True, slots=True)
class Chart:
    """What a page draws: the labels of its axes, its lines, and the same in words."""

    title: str
    top: str
    middle: str
    begins: str
    lines: Sequence[DrawnLine]
    label: str
    empty: bool


def chart(title: str, lines: Sequence[ChartLine], form: Callable[[float], str], begins: str) -> Chart:
    """A chart from 0 to a round number above all values; `begins` says when its left end is."""
    known = [value for line in lines for value in line.values if value is not None]
    top = ceiling(max(known, default=0.0))
    drawn = [DrawnLine(line.name, line.tone, line.shown, path(line.values, top)) for line in lines]
    said = ", ".join(f"{line.name} {line.shown}" for line in lines)
    label = f"{title}, from {begins} until now: {said}"
    return Chart(title, form(top), form(top / 2), begins, drawn, label, not any(known))


def ceiling(value: float) -> float:
    """The next of 1, 2, 5, 10, 20 and so on.

    >>> ceiling(0.0), ceiling(0.13), ceiling(2.0), ceiling(37.0)
    (1.0, 0.2, 2.0, 50.0)
    """
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(
        float(f"{step * power:.6g}") for step in (1, 2, 5, 10, 20) if step * power >= value * (1 - 1e-9)
    )


def path(values: Sequence[Value], top: float, width: int = WIDTH, height: int = HEIGHT) -> str:
    """The path of a line through the middles of slots, with a gap where a value is None; one value alone is a
    dot.

    >>> path([0.0, 1.0, None, 1.0], 1.0, 40, 10)
    'M5 10 15 0M35 0h.1'
    """
    wide, found = width / max(len(values), 1), list[str]()
    run: list[str] = []
    for place, value in enumerate((*values, None)):
        if value is not None:
            run.append(f"{(place + 0.5) * wide:.4g} {height * (1 - value / top):.4g}")
        elif run:
            found.append("M" + " ".join(run) + ("h.1" if len(run) == 1 else ""))
            run = []
    return "".join(found)


def spark(values: Sequence[float]) -> str:
    """The path of a small line, 100 wide and 20 high."""
    return path(values, max(max(values, default=0.0), 1.0), 100, 20)
