"""The report card as a page to read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

ARMS = {
    "base": "base, zero-shot",
    "base_with_examples": "base + worked examples",
    "adapter": "adapter, zero-shot",
}
COLUMNS = {"score": "{metric}", "format_blind": "format-blind", "likeliest_label": "likeliest label"}


def page(report: Mapping[str, Any]) -> str:
    """`REPORT.md`: everything in it comes from `report`."""
    return "\n".join([*_head(report), "", *_scores(report), "", *_gains(report), "", *_rest(report)]) + "\n"


def _head(report: Mapping[str, Any]) -> Iterator[str]:
    adapter, data, machine = report["adapter"], report["data"], report["machine"]
    yield f"# {adapter['name']} {adapter['version']}: report card"
    yield ""
    yield f"- Base: {report['base']['model']}, digest `{report['base']['digest'][:12]}…`"
    yield f"- Weights: sha256 `{adapter['weights_sha256'][:12]}…`"
    picked = "all of them" if data["asked"] == data["rows"] else "drawn by a fixed seed"
    rows = f"{data['asked']} of {data['rows']} rows of `{data['file']}` ({picked})"
    yield f"- Test data, none of it trained on: {rows}"
    yield f"- Worked examples: {data['shots']}, the first of the training split with distinct answers"
    cores = f"{machine['cores']} cores, {machine['threads']} threads"
    yield f"- Machine: {machine['device']}, {cores}; {machine['date']}"
    yield f"- Versions: {', '.join(f'{name} {number}' for name, number in machine['versions'].items())}"
    yield f"- Command: `{report['command']}`"
    yield ""
    yield f"In brackets: 95 % bootstrap intervals, paired for differences. {report['reading']}"


def _scores(report: Mapping[str, Any]) -> Iterator[str]:
    shown = [name for name in COLUMNS if name in report["arms"]["adapter"]]
    titles = [COLUMNS[name].format(metric=report["metric"]) for name in shown]
    yield f"| | {' | '.join(titles)} | loss per gold token | prompt tokens | answer tokens |"
    yield "|---|" + "---|" * (len(shown) + 3)
    for arm, values in report["arms"].items():
        scores = [_bracketed(values[name], report["scale"]) for name in shown]
        numbers = [str(values[name]) for name in ("loss_per_gold_token", "prompt_tokens", "answer_tokens")]
        yield f"| {ARMS[arm]} | {' | '.join([*scores, *numbers])} |"
    for name, value in report["references"].items():
        yield f"| *{name}* | {value:.{report['scale']}f} |" + " |" * (len(shown) + 2)


def _gains(report: Mapping[str, Any]) -> Iterator[str]:
    yield "Differences:"
    yield ""
    for pair, gains in report["gains"].items():
        parts = (
            f"{name.replace('_', ' ')} {_bracketed(value, report['scale'])}" for name, value in gains.items()
        )
        yield f"- {pair.replace('_', ' ')}: {'; '.join(parts)}"


def _rest(report: Mapping[str, Any]) -> Iterator[str]:
    yield "The adapter on each split, teacher-forced: nats per gold-answer token, and how often greedy"
    yield "decoding gives the gold answer:"
    yield ""
    for name, split in report["splits"].items():
        yield f"- {name}: loss {split['loss']:.3f}, exact {split['exact']:.3f}"
    yield ""
    yield "![training curves](curves.png)"
    yield ""
    yield "| question | gold | base | adapter |"
    yield "|---|---|---|---|"
    for sample in report["samples"]:
        yield "| " + " | ".join(_cell(sample[name]) for name in ("prompt", "gold", "base", "adapter")) + " |"


def _bracketed(value: Mapping[str, float], digits: int) -> str:
    return f"{value['value']:.{digits}f} [{value['low']:.{digits}f}, {value['high']:.{digits}f}]"


def _cell(text: str, longest: int = 160) -> str:
    flat = " ".join(text.split()).replace("|", "\\|")
    return flat if len(flat) <= longest else flat[:longest] + "…"
