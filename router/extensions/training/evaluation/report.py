"""The report card: its values (report.json), and the page that shows them (REPORT.md).

Everything on the page comes from the report's values.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from router.engine.base import BaseInfo
from router.extensions.training.base import LoadedBase, describe_machine
from router.extensions.training.data import TrainingRow
from router.extensions.training.evaluation.exam import MeasuredArm
from router.extensions.training.evaluation.generalization import overfitting_gap
from router.extensions.training.evaluation.metrics import METRICS
from router.extensions.training.evaluation.subject import ComparedArm
from router.extensions.training.files import write_file
from router.registry.format.manifest import MOST_ROWS, Manifest

LONGEST_CELL = 160  # characters
ARMS = {
    "base": "base, zero-shot",
    "base_with_examples": "base + worked examples",
    "adapter": "adapter, zero-shot",
}
COLUMNS = {"score": "{metric}", "format_blind": "format-blind"}
NUMBERS = ("loss_per_gold_token", "prompt_tokens", "answer_tokens")
GAINS = {
    "score": "{metric}",
    "format_blind": "format-blind",
    "loss_per_gold_token": "loss per gold token",
}


def report_page(report: Mapping[str, Any]) -> str:
    """`REPORT.md`: everything in it comes from `report`; a section that the report has not is left out."""
    adapter = report["adapter"]
    lines = [f"# {adapter['name']} {adapter['version']}: report card", "", *_summary(report), ""]
    lines += _facts(report)
    for title, body in _sections(report):
        lines += ["", f"## {title}", "", *body]
    return "\n".join(lines) + "\n"


def in_one_sentence(report: Mapping[str, Any]) -> str:
    """One sentence: the score against the base and, where it was asked, the base with examples."""
    arms, digits = report["arms"], max(1, report["scale"] - 1)
    ours = bracketed(arms["adapter"]["score"], digits)
    text = f"{ours} {report['metric']} against {arms['base']['score']['value']:.{digits}f} for the base"
    if shots := arms.get("base_with_examples"):
        text += (
            f" and {shots['score']['value']:.{digits}f} for the base with {report['data']['shots']} examples"
        )
    return f"{text}, n={report['data']['asked']}"


def unclear_gains(report: Mapping[str, Any]) -> Iterator[str]:
    """A sentence for each gain whose interval holds zero."""
    for pair, found in report["gains"].items():
        gain, rows = found["score"], report["data"]["asked"]
        if gain["low"] <= 0:
            text = f"The gain {pair.replace('_', ' ')} is not shown: its interval does not exclude zero"
            if gain["value"] > 0:
                needed = math.ceil(rows * ((gain["value"] - gain["low"]) / gain["value"]) ** 2) + 1
                text += f"; a gain of this size takes about {needed} rows"
            yield f"{text}."


def _summary(report: Mapping[str, Any]) -> Iterator[str]:
    yield f"**{in_one_sentence(report)}.**"
    yield from unclear_gains(report)
    if "generalization" not in report:
        yield "Not known: whether it was trained on these rows, and what it does to anything else."
    elif worse := [found["what"] for found in report["regressions"] if found["worse"]]:
        yield f"It makes worse, beyond the margin: {', '.join(worse)}."
    else:
        yield "No regression beyond the margin on general text."


def precision(engine: Mapping[str, Any]) -> str:
    """What the engine of a report answered in; older reports know of no 8 bits."""
    return f"{engine['dtype']}, weights {engine['weights']}" if engine.get("weights") else engine["dtype"]


def _facts(report: Mapping[str, Any]) -> Iterator[str]:
    adapter, data, machine = report["adapter"], report["data"], report["machine"]
    yield f"- Base: {report['base']['model']}, digest `{report['base']['digest'][:12]}…`"
    yield f"- Weights: sha256 `{adapter['weights_sha256'][:12]}…`"
    picked = "all of them" if data["asked"] == data["rows"] else "drawn by a fixed seed"
    rows = f"{data['asked']} of {data['rows']} rows of `{data['file']}` ({picked})"
    if "shots" in data:
        yield f"- Test data, none of it trained on: {rows}"
        yield f"- Worked examples: {data['shots']}, the first of the training split with distinct answers"
    else:
        yield f"- Data: {rows}"
    if "engine" in report:
        engine = report["engine"]
        held = (
            f"; all arms held to the {engine['constraint']} of adapter.toml" if "constraint" in engine else ""
        )
        yield f"- Answers: greedy, by the engine that serves ({precision(engine)}, {engine['kernels']}){held}"
    cores = f"{machine['cores']} cores, {machine['threads']} threads"
    yield f"- Machine: {machine['device']}, {cores}; {machine['date']}"
    yield f"- Versions: {', '.join(f'{name} {number}' for name, number in machine['versions'].items())}"
    yield f"- Command: `{report['command']}`"


def _sections(report: Mapping[str, Any]) -> Iterator[tuple[str, Iterable[str]]]:
    yield "Accuracy", _accuracy(report)
    if "efficiency" in report:
        yield "Efficiency", efficiency_lines(report["efficiency"])
    if "splits" in report:
        yield "Overfitting", overfitting_lines(report["splits"])
    for name, lines in (
        ("calibration", calibration_lines),
        ("generalization", generalization_lines),
        ("data_need", data_need_lines),
        ("bias", bias_lines),
    ):
        if name in report:
            yield name.replace("_", " ").capitalize(), lines(report[name])
    yield (
        "Answers",
        [f"The first {len(report['samples'])} rows asked, not picked.", "", *sample_table(report)],
    )


def _accuracy(report: Mapping[str, Any]) -> Iterator[str]:
    yield f"In brackets: 95 % bootstrap intervals, paired for differences. {report['reading']}"
    yield ""
    yield from score_table(report)
    yield from part_table(report)
    yield ""
    yield from gain_lines(report)


# -- scores and answers


def score_table(report: Mapping[str, Any]) -> Iterator[str]:
    """One row for each arm and reference."""
    shown = [name for name in COLUMNS if name in report["arms"]["adapter"]]
    numbers = [name for name in NUMBERS if name in report["arms"]["adapter"]]
    titles = [COLUMNS[name].format(metric=report["metric"]) for name in shown]
    yield f"| | {' | '.join([*titles, *(name.replace('_', ' ') for name in numbers)])} |"
    yield "|---|" + "---|" * (len(shown) + len(numbers))
    for arm, values in report["arms"].items():
        cells = [bracketed(values[name], report["scale"]) for name in shown]
        yield f"| {ARMS[arm]} | {' | '.join([*cells, *(str(values[name]) for name in numbers)])} |"
    for name, value in report.get("references", {}).items():
        yield f"| *{name}* | {value:.{report['scale']}f} |" + " |" * (len(shown) + len(numbers) - 1)


def gain_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """The differences between the arms."""
    yield "Differences, paired row by row:"
    yield ""
    for pair, values in report["gains"].items():
        parts = (
            f"{GAINS[name].format(metric=report['metric'])} {bracketed(value, _digits(report, name), '+')}"
            for name, value in values.items()
        )
        yield f"- {pair.replace('_', ' ')}: {'; '.join(parts)}"


def part_table(report: Mapping[str, Any]) -> Iterator[str]:
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


def sample_table(report: Mapping[str, Any]) -> Iterator[str]:
    """Questions with their answers."""
    names = [name for name in ("prompt", "gold", *ARMS) if report["samples"] and name in report["samples"][0]]
    yield f"| {' | '.join(['question', 'gold', *(name.replace('_', ' ') for name in names[2:])])} |"
    yield "|" + "---|" * len(names)
    for sample in report["samples"]:
        yield "| " + " | ".join(cell(sample[name]) for name in names) + " |"


# -- the other sections


def efficiency_lines(section: Mapping[str, Any]) -> list[str]:
    """The section as lines of a page."""
    adapter, shots = (section["arms"][name] for name in ("adapter", "base_with_examples"))
    return [
        f"{section['rows']} requests one after another, nothing else in the engine, the arms in turn. The",
        "worked examples are the same in every request, so that the engine computes them once and then takes",
        "them from its prefix cache. Time to a right answer: seconds per answer divided by the score on all",
        "rows (for graded metrics: by the share of the full score).",
        "",
        _efficiency_verdict(adapter, shots),
        "",
        "| | prompt tokens | of them cached | answer tokens | seconds an answer | seconds a right answer |",
        "|---|---|---|---|---|---|",
        f"| base + worked examples | {_cost_cells(shots)} |",
        f"| adapter, zero-shot | {_cost_cells(adapter)} |",
    ]


def _efficiency_verdict(adapter: Mapping[str, Any], shots: Mapping[str, Any]) -> str:
    ours, theirs = adapter["seconds_per_point"], shots["seconds_per_point"]
    if ours is None:
        return "The adapter gave no right answer, so that there is no time to one."
    if theirs is None:
        return f"A right answer takes the adapter {ours:.2f} s; the base with examples gave none."
    cost = f"{theirs / ours:.1f} times less" if ours < theirs else f"{ours / theirs:.1f} times more"
    return (
        f"A right answer takes the adapter {ours:.2f} s, {cost} than the base with examples ({theirs:.2f} s)."
    )


def _cost_cells(arm: Mapping[str, Any]) -> str:
    point = "none right" if arm["seconds_per_point"] is None else f"{arm['seconds_per_point']:.3f}"
    numbers = (arm["prompt_tokens"], arm["cached_tokens"], arm["answer_tokens"], f"{arm['seconds']:.3f}")
    return " | ".join(map(str, (*numbers, point)))


def overfitting_lines(splits: Mapping[str, Any]) -> Iterator[str]:
    """The section as lines of a page."""
    if "low" in splits["test"]:
        yield overfitting_verdict(splits)
    yield "The adapter on each split, teacher-forced: nats per gold-answer token, and how often greedy"
    yield "decoding gives the gold answer."
    yield ""
    yield "| split | rows | loss | greedy exact |"
    yield "|---|---|---|---|"
    for name, split in splits.items():
        loss = bracketed({**split, "value": split["loss"]}, 3) if "low" in split else f"{split['loss']:.3f}"
        yield f"| {name} | {split.get('rows', '')} | {loss} | {split['exact']:.3f} |"


def overfitting_verdict(splits: Mapping[str, Mapping[str, float]]) -> str:
    """One sentence: does it overfit? `splits` is what `measure_overfitting` returns."""
    found = overfitting_gap(splits)
    numbers = f"{found['value']:+.3f} nats per gold token [{found['low']:+.3f}, {found['high']:+.3f}]"
    exact = f"greedy exact {splits['train']['exact']:.3f} on train, {splits['test']['exact']:.3f} on test"
    if found["low"] > 0:
        return f"It overfits: the loss on test rows is above that on training rows by {numbers} ({exact})."
    if found["high"] < 0:
        return f"It does not overfit: test rows are easier for it than training rows, {numbers} ({exact})."
    return f"No overfitting that so few rows can show: test - train is {numbers}, zero included ({exact})."


def generalization_lines(section: Mapping[str, Any]) -> list[str]:
    """The section as lines of a page."""
    if not section["sets"]:
        return ["Generalization: not measured, there are no other recipes and no general text."]
    lines = [
        "What the adapter does to other tasks and to general text, in nats per gold token under the base's",
        f"own prompt (less is better; worse: more than {section['margin']:g} above the base, and the",
        "interval excludes zero):",
        "",
        "| text | rows | base | adapter | adapter - base | |",
        "|---|---|---|---|---|---|",
    ]
    for found in section["sets"]:
        gap = found["difference"]
        shown = bracketed(gap, 3, "+")
        cells = (found["what"], str(found["rows"]), f"{found['base']:.3f}", f"{found['adapter']:.3f}", shown)
        lines.append(f"| {' | '.join(cells)} | {'**worse**' if found['worse'] else ''} |")
    return lines


def calibration_lines(section: Mapping[str, Any]) -> list[str]:
    """The section as lines of a page."""
    temperature = section["temperature"]
    how = "not calibrated" if temperature is None else f"temperature {temperature:g}, of validation rows"
    return [
        f"The probability of each choice ({how}) on {section['rows']} test rows,",
        "against how often it is right.",
        "Expected calibration error: rows in ten bins by the probability of the likeliest choice, the mean",
        "distance between that probability and the share of right ones. By chance: what exact probabilities",
        "would show on so many rows.",
        "",
        "| | error |",
        "|---|---|",
        f"| likeliest choice | {section['error']:.3f} |",
        f"| likeliest choice, by chance | {section['by_chance']:.3f} |",
        f"| likeliest choice, before calibration | {section['error_before']:.3f} |",
        f"| all choices | {section['error_all']:.4f} |",
        "",
        f"The likeliest choice is right on {section['likeliest']:.3f} of the rows.",
        "",
        "| rows | mean probability | right |",
        "|---|---|---|",
        *(f"| {found['rows']} | {found['sure']:.3f} | {found['right']:.3f} |" for found in section["bins"]),
    ]


def data_need_lines(section: Mapping[str, Any]) -> list[str]:
    """The section as lines of a page."""
    digits = section["digits"]
    lines = [
        f"Data need: {section['metric']} on test rows after training on a part of the training rows, with",
        "the steps cut in proportion and all else equal:",
        "",
        "| part | training rows | steps | test rows | score |",
        "|---|---|---|---|---|",
    ]
    for point in section["points"]:
        cells = (f"{point['fraction']:.0%}", point["rows"], point["steps"], point["asked"])
        lines.append(f"| {' | '.join(map(str, cells))} | {bracketed(point['score'], digits)} |")
    return lines


def bias_lines(section: Mapping[str, Any]) -> list[str]:
    """The section as lines of a page."""
    lines = [
        f"{section['prompts']} counterfactual prompts in {section['groups']} groups on {section['texts']}",
        f"texts (`{section['file']}`): the share of answers that change when only the words for a person do,",
        "after the swapped words are mapped back. The control swaps words that say nothing about a person.",
        "",
        "| swapped | variants | base | adapter | adapter - base | adapter - its control |",
        "|---|---|---|---|---|---|",
    ]
    for row in section["rows"]:
        estimates = (row[name] for name in ("base", "adapter", "difference", "over_control"))
        shown = [bracketed(found, 3) if found else "" for found in estimates]
        lines.append(f"| {row['what']} | {row['variants']} | {' | '.join(shown)} |")
    if section["examples"]:
        lines += ["", "| changed by | reference | variant | answer | answer to the variant |"]
        lines.append("|---|---|---|---|---|")
    for found in section["examples"]:
        names = ("attribute", "reference", "variant", "answer", "variant_answer")
        lines.append("| " + " | ".join(cell(found[name]) for name in names) + " |")
    return lines


# -- cells


def bracketed(value: Mapping[str, float], digits: int, sign: str = "") -> str:
    """`0.776 [0.726, 0.826]`."""
    middle, low, high = (f"{value[name]:{sign}.{digits}f}" for name in ("value", "low", "high"))
    return f"{middle} [{low}, {high}]"


def cell(text: str) -> str:
    """Text on one line, cut if it is long."""
    flat = " ".join(text.split()).replace("|", "\\|")
    return flat if len(flat) <= LONGEST_CELL else flat[:LONGEST_CELL] + "…"


def _digits(report: Mapping[str, Any], name: str) -> int:
    return 3 if name == "loss_per_gold_token" else int(report["scale"])


# -- report.json


SCHEMA = 2
SAMPLES = 12  # answers shown


def report_card(
    facts: Mapping[str, Any],
    arms: Mapping[ComparedArm, MeasuredArm],
    sections: Mapping[str, Any],
    samples: Sequence[Mapping[str, str]],
) -> dict[str, Any]:
    """`report.json`, as docs/training.md describes it.

    `facts` say what was measured on what; `sections` are what was found beside the scores.
    """
    adapter = arms[ComparedArm.ADAPTER]
    return {
        "schema": SCHEMA,
        **facts,
        "arms": {arm.value: _arm(measured, arm) for arm, measured in arms.items()},
        "gains": {
            f"adapter - {arm.value}": _gain(adapter, other)
            for arm, other in arms.items()
            if arm is not ComparedArm.ADAPTER
        },
        **sections,
        "samples": list(samples),
    }


@dataclass(frozen=True, slots=True)
class AskedData:
    """The test file, its usable rows, those asked, and the worked examples of the arm with some."""

    file: Path
    rows: int
    asked: int
    shots: int | None = None


def card_head(
    manifest: Manifest,
    weights_sha256: str,
    base: LoadedBase,
    data: AskedData,
    metric: str,
    engine: BaseInfo,
) -> dict[str, Any]:
    """The adapter and base that a report is about, the data, the metric, the machine and the engine."""
    constraint, held = manifest.generation.constraint, {}
    if constraint is not None:
        made = constraint.kind == "from_prompt"
        held = {"constraint": f"template {constraint.text}" if made else constraint.kind}
    return {
        "adapter": {
            "name": manifest.name,
            "version": manifest.version,
            "weights_sha256": weights_sha256,
        },
        "base": {"model": base.name, "digest": base.digest},
        "data": {
            "file": data.file.name,
            "sha256": hashlib.sha256(data.file.read_bytes()).hexdigest(),
            "rows": data.rows,
            "asked": data.asked,
            **({} if data.shots is None else {"shots": data.shots}),
        },
        "metric": METRICS[metric].title,
        "scale": METRICS[metric].digits,
        "reading": METRICS[metric].reading,
        "machine": describe_machine(base.device),
        "engine": {"dtype": engine.dtype, "weights": engine.weights, "kernels": engine.kernels, **held},
    }


def with_weights(weights: str) -> str:
    """What stands before the command of a report where the base's weights were int8 or int4."""
    return f"LORA_ROUTER_QUANTIZE={weights} " if weights else ""


def first_samples(
    rows: Sequence[TrainingRow], answers: Mapping[ComparedArm, Sequence[str]]
) -> list[dict[str, str]]:
    """The first rows with what each arm answered: not picked."""
    return [
        {
            "prompt": row.prompt,
            "gold": row.response,
            **{arm.value: texts[place] for arm, texts in answers.items()},
        }
        for place, row in enumerate(rows[:SAMPLES])
    ]


def write_report(folder: Path, report: Mapping[str, Any]) -> None:
    """report.json and REPORT.md. Raises ResourceExhausted when the disk is full."""
    text = json.dumps(report, ensure_ascii=False, indent=1) + "\n"
    write_file(folder / "report.json", text.encode())
    write_file(folder / "REPORT.md", report_page(report).encode())


def _arm(measured: MeasuredArm, arm: ComparedArm) -> dict[str, Any]:
    loss = {} if measured.loss is None else {"loss_per_gold_token": round(measured.loss.value, 6)}
    gate = arm is ComparedArm.ADAPTER and len(measured.rows) <= MOST_ROWS  # by which it pairs two versions
    return {
        "score": measured.score.rounded(),
        "format_blind": measured.blind.rounded(),
        "parts": {name: part.rounded() for name, part in measured.parts.items()},
        **loss,
        "prompt_tokens": round(measured.prompt_tokens, 1),
        "answer_tokens": round(measured.answer_tokens, 1),
        **({"rows": list(measured.rows)} if gate else {}),
    }


def _gain(adapter: MeasuredArm, other: MeasuredArm) -> dict[str, Any]:
    loss = adapter.loss.minus(other.loss) if adapter.loss and other.loss else None
    return {
        "score": adapter.score.minus(other.score).rounded(),
        "format_blind": adapter.blind.minus(other.blind).rounded(),
        **({"loss_per_gold_token": loss.rounded()} if loss else {}),
    }
