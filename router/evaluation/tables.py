"""The scores of a report card as tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

ARMS = {
    "base": "base, zero-shot",
    "base_with_examples": "base + worked examples",
    "adapter": "adapter, zero-shot",
}
COLUMNS = {"score": "{metric}", "format_blind": "format-blind", "likeliest_label": "likeliest label"}
NUMBERS = ("loss_per_gold_token", "prompt_tokens", "answer_tokens")
GAINS = {
    "score": "{metric}",
    "format_blind": "format-blind",
    "likeliest_label": "likeliest label",
    "loss_per_gold_token": "loss per gold token",
}


def scores(report: Mapping[str, Any]) -> Iterator[str]:
    """One row for each arm and reference."""
    shown = [name for name in COLUMNS if name in report["arms"]["adapter"]]
    told = [name for name in NUMBERS if name in report["arms"]["adapter"]]
    titles = [COLUMNS[name].format(metric=report["metric"]) for name in shown]
    yield f"| | {' | '.join([*titles, *(name.replace('_', ' ') for name in told)])} |"
    yield "|---|" + "---|" * (len(shown) + len(told))
    for arm, values in report["arms"].items():
        cells = [bracketed(values[name], report["scale"]) for name in shown]
        yield f"| {ARMS[arm]} | {' | '.join([*cells, *(str(values[name]) for name in told)])} |"
    for name, value in report.get("references", {}).items():
        yield f"| *{name}* | {value:.{report['scale']}f} |" + " |" * (len(shown) + len(told) - 1)


def gains(report: Mapping[str, Any]) -> Iterator[str]:
    """The differences between the arms."""
    yield "Differences, paired row by row:"
    yield ""
    for pair, values in report["gains"].items():
        parts = (
            f"{GAINS[name].format(metric=report['metric'])} {bracketed(value, _digits(report, name), '+')}"
            for name, value in values.items()
        )
        yield f"- {pair.replace('_', ' ')}: {'; '.join(parts)}"


def parts(report: Mapping[str, Any]) -> Iterator[str]:
    """Further figures of each arm, if there are any."""
    names = list(report["arms"]["adapter"].get("parts", {}))
    if not names:
        return
    yield ""
    yield f"| | {' | '.join(names)} |"
    yield "|---|" + "---|" * len(names)
    for arm, values in report["arms"].items():
        cells = (bracketed(values["parts"][name], report["scale"]) for name in names)
        yield f"| {ARMS[arm]} | {' | '.join(cells)} |"


def samples(report: Mapping[str, Any]) -> Iterator[str]:
    """Questions with their answers."""
    names = [name for name in ("prompt", "gold", *ARMS) if report["samples"] and name in report["samples"][0]]
    yield f"| {' | '.join(['question', 'gold', *(name.replace('_', ' ') for name in names[2:])])} |"
    yield "|" + "---|" * len(names)
    for sample in report["samples"]:
        yield "| " + " | ".join(cell(sample[name]) for name in names) + " |"


def bracketed(value: Mapping[str, float], digits: int, sign: str = "") -> str:
    """`0.776 [0.726, 0.826]`."""
    middle, low, high = (f"{value[name]:{sign}.{digits}f}" for name in ("value", "low", "high"))
    return f"{middle} [{low}, {high}]"


def cell(text: str, longest: int = 160) -> str:
    """Text on one line, cut if it is long."""
    flat = " ".join(text.split()).replace("|", "\\|")
    return flat if len(flat) <= longest else flat[:longest] + "…"


def _digits(report: Mapping[str, Any], name: str) -> int:
    return 3 if name == "loss_per_gold_token" else int(report["scale"])
