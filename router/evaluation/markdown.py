"""The report card as a page to read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from router.evaluation import bias, data_need, efficiency, generalization, overfitting, tables


def page(report: Mapping[str, Any]) -> str:
    """`REPORT.md`: everything in it comes from `report`; a section that the report has not is left out."""
    adapter = report["adapter"]
    lines = [f"# {adapter['name']} {adapter['version']}: report card", "", *_summary(report), ""]
    lines += _facts(report)
    for title, body in _sections(report):
        lines += ["", f"## {title}", "", *body]
    return "\n".join(lines) + "\n"


def summary(report: Mapping[str, Any]) -> str:
    """One sentence: the score against the base and the base with examples."""
    arms, digits = report["arms"], max(1, report["scale"] - 1)
    base, shots = (f"{arms[arm]['score']['value']:.{digits}f}" for arm in ("base", "base_with_examples"))
    ours = tables.bracketed(arms["adapter"]["score"], digits)
    examples, asked = report["data"]["shots"], report["data"]["asked"]
    return (
        f"{ours} {report['metric']} against {base} for the base and {shots} for the base with {examples} "
        f"examples, n={asked}"
    )


def _summary(report: Mapping[str, Any]) -> Iterator[str]:
    yield f"**{summary(report)}.**"
    unclear = [pair for pair, gain in report["gains"].items() if gain["score"]["low"] <= 0]
    for pair in unclear:
        yield f"The gain {pair.replace('_', ' ')} is not shown: its interval does not exclude zero."
    worse = [found["what"] for found in report.get("regressions", ()) if found["worse"]]
    if worse:
        yield f"It makes worse, beyond the margin: {', '.join(worse)}."
    elif "regressions" in report:
        yield "No regression beyond the margin on general text."


def _facts(report: Mapping[str, Any]) -> Iterator[str]:
    adapter, data, machine = report["adapter"], report["data"], report["machine"]
    yield f"- Base: {report['base']['model']}, digest `{report['base']['digest'][:12]}…`"
    yield f"- Weights: sha256 `{adapter['weights_sha256'][:12]}…`"
    picked = "all of them" if data["asked"] == data["rows"] else "drawn by a fixed seed"
    rows = f"{data['asked']} of {data['rows']} rows of `{data['file']}` ({picked})"
    yield f"- Test data, none of it trained on: {rows}"
    yield f"- Worked examples: {data['shots']}, the first of the training split with distinct answers"
    if "engine" in report:
        engine = report["engine"]
        yield f"- Answers: greedy, by the engine that serves ({engine['dtype']}, {engine['kernels']})"
    cores = f"{machine['cores']} cores, {machine['threads']} threads"
    yield f"- Machine: {machine['device']}, {cores}; {machine['date']}"
    yield f"- Versions: {', '.join(f'{name} {number}' for name, number in machine['versions'].items())}"
    yield f"- Command: `{report['command']}`"


def _sections(report: Mapping[str, Any]) -> Iterator[tuple[str, Iterable[str]]]:
    yield "Accuracy", _accuracy(report)
    if "efficiency" in report:
        yield "Efficiency", efficiency.markdown(report["efficiency"])
    yield "Overfitting", _overfitting(report["splits"])
    for name, module in (("generalization", generalization), ("data_need", data_need), ("bias", bias)):
        if name in report:
            picture = f"{name}.png" if f"{name}.png" in report.get("pictures", ()) else ""
            shown = ["", f"![{name.replace('_', ' ')}]({picture})"] if picture else []
            yield name.replace("_", " ").capitalize(), [*module.markdown(report[name]), *shown]
    yield (
        "Answers",
        [f"The first {len(report['samples'])} rows asked, not picked.", "", *tables.samples(report)],
    )


def _accuracy(report: Mapping[str, Any]) -> Iterator[str]:
    yield f"In brackets: 95 % bootstrap intervals, paired for differences. {report['reading']}"
    ranked, asked = report["data"].get("ranked", 0), report["data"]["asked"]
    if 0 < ranked < asked:
        labels = f"all {report['data']['labels']} labels"
        yield f"Labels were ranked on {ranked} rows, drawn by a fixed seed: for each, {labels} are judged."
    yield ""
    yield from tables.scores(report)
    yield from tables.parts(report)
    yield ""
    yield from tables.gains(report)


def _overfitting(splits: Mapping[str, Any]) -> Iterator[str]:
    if "low" in splits["test"]:
        yield overfitting.overfitting(splits)
    yield "The adapter on each split, teacher-forced: nats per gold-answer token, and how often greedy"
    yield "decoding gives the gold answer."
    yield ""
    yield "| split | rows | loss | greedy exact |"
    yield "|---|---|---|---|"
    for name, split in splits.items():
        loss = (
            tables.bracketed({**split, "value": split["loss"]}, 3)
            if "low" in split
            else f"{split['loss']:.3f}"
        )
        yield f"| {name} | {split.get('rows', '')} | {loss} | {split['exact']:.3f} |"
    yield ""
    yield "![training curves](curves.png)"
