"""The report card as a page to read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from router.evaluation import bias, efficiency, generalization, learning_curve

# Pictures beside a report card.


def draw_data_need(section: Mapping[str, Any], path: Path) -> None:
    """The score over the number of training rows, with intervals, as a PNG; `section` is data_need's."""
    points = section["points"]
    rows = [point["rows"] for point in points]
    figure, axes = _figure(xlabel="training rows", ylabel=section["metric"])
    scores = [point["score"] for point in points]
    axes.errorbar(rows, [score["value"] for score in scores], yerr=_bars(scores), fmt="o-", capsize=3)
    axes.set_xscale("log")
    axes.set_xticks(
        rows, [f"{row}\n{point['fraction']:.0%}" for row, point in zip(rows, points, strict=True)]
    )
    axes.minorticks_off()
    figure.savefig(path)


def draw_generalization(section: Mapping[str, Any], path: Path) -> None:
    """Adapter - base on every set, with intervals and the margin, as a PNG; `section` is generalization's.

    Raises ValueError if the section has no set.
    """
    sets = section["sets"]
    if not sets:
        raise ValueError("nothing was compared")
    figure, axes = _figure(xlabel="adapter - base, nats per gold token", ylabel="")
    gaps = [found["difference"] for found in sets]
    places = range(len(sets))
    axes.errorbar([gap["value"] for gap in gaps], places, xerr=_bars(gaps), fmt="o", capsize=3)
    axes.axvline(0, color="0.6", lw=0.8)
    axes.axvline(section["margin"], color="tab:red", lw=0.8, ls=":", label="margin")
    axes.set_yticks(places, [found["what"] for found in sets])
    axes.invert_yaxis()
    axes.legend(fontsize="small")
    figure.savefig(path)


def draw_bias(section: Mapping[str, Any], path: Path) -> None:
    """The share of changed answers for each attribute, base and adapter, as a PNG; `section` is bias's."""
    rows = section["rows"]
    figure, axes = _figure(xlabel="swapped", ylabel="share of answers that change")
    for shift, arm in ((-0.1, "base"), (0.1, "adapter")):
        shares = [row[arm] for row in rows]
        places = [place + shift for place in range(len(rows))]
        heights = [share["value"] for share in shares]
        axes.errorbar(places, heights, yerr=_bars(shares), fmt="o", capsize=3, label=arm)
    axes.set_xticks(range(len(rows)), [row["what"] for row in rows])
    axes.set_ylim(-0.02, 1.02)
    axes.legend(fontsize="small")
    figure.savefig(path)


def _figure(**labels: str) -> tuple[Any, Any]:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.use("agg")
    figure = Figure(figsize=(6, 3.2), dpi=100, layout="constrained")
    return figure, figure.add_subplot(**labels)


def _bars(estimates: list[Mapping[str, float]]) -> list[list[float]]:
    """Lengths of the bars below and above each value, as matplotlib wants them."""
    return [
        [max(0.0, found["value"] - found["low"]) for found in estimates],
        [max(0.0, found["high"] - found["value"]) for found in estimates],
    ]


# The scores of a report card as tables.


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


def score_table(report: Mapping[str, Any]) -> Iterator[str]:
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
    ours = bracketed(arms["adapter"]["score"], digits)
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
    for name, module in (("generalization", generalization), ("data_need", learning_curve), ("bias", bias)):
        if name in report:
            picture = f"{name}.png" if f"{name}.png" in report.get("pictures", ()) else ""
            shown = ["", f"![{name.replace('_', ' ')}]({picture})"] if picture else []
            yield name.replace("_", " ").capitalize(), [*module.markdown(report[name]), *shown]
    yield (
        "Answers",
        [f"The first {len(report['samples'])} rows asked, not picked.", "", *samples(report)],
    )


def _accuracy(report: Mapping[str, Any]) -> Iterator[str]:
    yield f"In brackets: 95 % bootstrap intervals, paired for differences. {report['reading']}"
    ranked, asked = report["data"].get("ranked", 0), report["data"]["asked"]
    if 0 < ranked < asked:
        labels = f"all {report['data']['labels']} labels"
        yield f"Labels were ranked on {ranked} rows, drawn by a fixed seed: for each, {labels} are judged."
    yield ""
    yield from score_table(report)
    yield from parts(report)
    yield ""
    yield from gains(report)


def _overfitting(splits: Mapping[str, Any]) -> Iterator[str]:
    if "low" in splits["test"]:
        yield generalization.overfitting(splits)
    yield "The adapter on each split, teacher-forced: nats per gold-answer token, and how often greedy"
    yield "decoding gives the gold answer."
    yield ""
    yield "| split | rows | loss | greedy exact |"
    yield "|---|---|---|---|"
    for name, split in splits.items():
        loss = bracketed({**split, "value": split["loss"]}, 3) if "low" in split else f"{split['loss']:.3f}"
        yield f"| {name} | {split.get('rows', '')} | {loss} | {split['exact']:.3f} |"
    yield ""
    yield "![training curves](curves.png)"
