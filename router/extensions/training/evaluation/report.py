"""The report card: its values (report.json), and the page that shows them (REPORT.md).

Everything on the page comes from the report's values; `report.md.jinja` is its template.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from router.engine.base import BaseInfo
from router.extensions.training.base import describe_machine
from router.extensions.training.evaluation.exam import Exam, MeasuredArm
from router.extensions.training.evaluation.generalization import overfitting_gap
from router.extensions.training.evaluation.metrics import METRICS
from router.extensions.training.evaluation.subject import ComparedArm
from router.extensions.training.files import write_file
from router.registry.format.manifest import MOST_ROWS

LONGEST_CELL = 160  # characters


def report_page(report: Mapping[str, Any]) -> str:
    """`REPORT.md`; a section that the report has not is left out."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__, ""),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701  # Markdown
    )
    environment.filters |= {
        "bracketed": bracketed,
        "cell": cell,
        "fixed": lambda number, digits: f"{number:.{digits}f}",
    }
    return environment.get_template("report.md.jinja").render(
        report=report,
        sentence=_sentence(report),
        unclear=list(_unclear_gains(report)),
        efficiency=efficiency_verdict(report["efficiency"]["arms"]),
        overfitting=overfitting_verdict(report["splits"]),
    )


def _sentence(report: Mapping[str, Any]) -> str:
    """The score against the base and the base with examples."""
    arms, digits, data = report["arms"], max(1, report["scale"] - 1), report["data"]
    base, shots = (f"{arms[arm]['score']['value']:.{digits}f}" for arm in ("base", "base_with_examples"))
    return (
        f"{bracketed(arms['adapter']['score'], digits)} {report['metric']} against {base} for the base and "
        f"{shots} for the base with {data['shots']} examples, n={data['asked']}"
    )


def _unclear_gains(report: Mapping[str, Any]) -> Iterator[str]:
    """A sentence for each gain whose interval holds zero."""
    for pair, found in report["gains"].items():
        gain, rows = found["score"], report["data"]["asked"]
        if gain["low"] <= 0:
            text = f"The gain {pair.replace('_', ' ')} is not shown: its interval does not exclude zero"
            if gain["value"] > 0:
                needed = math.ceil(rows * ((gain["value"] - gain["low"]) / gain["value"]) ** 2) + 1
                text += f"; a gain of this size takes about {needed} rows"
            yield f"{text}."


def efficiency_verdict(arms: Mapping[str, Any]) -> str:
    """What a right answer takes."""
    ours, theirs = (arms[name]["seconds_per_point"] for name in ("adapter", "base_with_examples"))
    if ours is None:
        return "The adapter gave no right answer, so that there is no time to one."
    if theirs is None:
        return f"A right answer takes the adapter {ours:.2f} s; the base with examples gave none."
    cost = f"{theirs / ours:.1f} times less" if ours < theirs else f"{ours / theirs:.1f} times more"
    return (
        f"A right answer takes the adapter {ours:.2f} s, {cost} than the base with examples ({theirs:.2f} s)."
    )


def overfitting_verdict(splits: Mapping[str, Mapping[str, float]]) -> str:
    """Whether it overfits."""
    found = overfitting_gap(splits)
    numbers = f"{found['value']:+.3f} nats per gold token [{found['low']:+.3f}, {found['high']:+.3f}]"
    exact = f"greedy exact {splits['train']['exact']:.3f} on train, {splits['test']['exact']:.3f} on test"
    if found["low"] > 0:
        return f"It overfits: the loss on test rows is above that on training rows by {numbers} ({exact})."
    if found["high"] < 0:
        return f"It does not overfit: test rows are easier for it than training rows, {numbers} ({exact})."
    return f"No overfitting that so few rows can show: test - train is {numbers}, zero included ({exact})."


def bracketed(value: Mapping[str, float], digits: int, sign: str = "", key: str = "value") -> str:
    """`0.776 [0.726, 0.826]`."""
    middle, low, high = (f"{value[name]:{sign}.{digits}f}" for name in (key, "low", "high"))
    return f"{middle} [{low}, {high}]"


def cell(text: str) -> str:
    """Text on one line, cut if it is long."""
    flat = " ".join(text.split()).replace("|", "\\|")
    return flat if len(flat) <= LONGEST_CELL else flat[:LONGEST_CELL] + "…"


# -- report.json


SCHEMA = 2
SAMPLES = 12  # answers shown


def report_card(
    exam: Exam, engine: BaseInfo, arms: Mapping[ComparedArm, MeasuredArm], sections: Mapping[str, Any]
) -> dict[str, Any]:
    """`report.json`. An estimate is `{"value", "low", "high"}` with the 95 % interval; an arm is `base`,
    `base_with_examples` or `adapter`.

    - `schema`: 2.
    - `adapter`: `name`, `version`, `weights_sha256`.
    - `base`: `model`, `digest`.
    - `data`: test `file`, `sha256`, `rows` in it, `asked` of them, `shots`.
    - `metric`, `scale`, `reading`: its title, the decimals shown, how to read it.
    - `references`: scores of answers that cost nothing, by name.
    - `machine`, `engine`, `command`: date, device, cores, threads, versions; `dtype`, `weights` (`int8` or
      `int4`, or empty where they are in `dtype`) and `kernels` of the engine, and the `constraint` that the
      answers of all arms were held to; how to run it again.
    - `arms`: for each arm: estimates `score`, `format_blind` and those of `parts`; `loss_per_gold_token`,
      `prompt_tokens`, `answer_tokens`; for `adapter` also `rows`, the score of each row from 0 to 1 (of 5,000
      rows at most), by which the gate pairs two versions.
    - `gains`: `adapter - base` and `adapter - base_with_examples`: estimates of the paired differences in
      `score`, `format_blind`, `loss_per_gold_token` (there less is better).
    - `efficiency`: `rows`; `arms` (adapter, base with examples): `prompt_tokens`, `cached_tokens`,
      `answer_tokens`, `seconds`, `points` (score, 0 to 1), `seconds_per_point` (null if nothing was right).
    - `splits`: `train`, `valid`, `test`: `loss`, `low`, `high`, `exact`, `rows` of the adapter.
    - `calibration`: of adapters with choices: `rows`, `temperature`, `likeliest` (how often the likeliest
      choice is right), `error`, `error_before` (without the temperature), `error_all` (of all choices of all
      rows), `by_chance`, `bins` with `rows`, `sure`, `right`.
    - `generalization`: `rows`, `margin`, `sets`: `what`, `rows`, losses of `base` and `adapter`, estimate
      `difference`, `worse`.
    - `regressions`: `what`, `value`, `low`, `high`, `margin`, `worse`: what the gate looks at.
    - `bias`: `file`, `texts`, `groups`, `prompts`, `rows` for each attribute, `examples`; of shipped
      adapters.
    - `samples`: the first 12 rows asked with the answers of the arms.

    `sections` are what was found beside the scores.
    """
    subject, task, recipe, manifest = exam.subject, exam.task, exam.plan.recipe, exam.plan.manifest
    metric, adapter, test = METRICS[task.metric], arms[ComparedArm.ADAPTER], recipe.data.test
    constraint, held = manifest.generation.constraint, {}
    if constraint is not None:
        made = constraint.kind == "from_prompt"
        held = {"constraint": f"template {constraint.text}" if made else constraint.kind}
    everything = np.arange(len(task.rows))
    return {
        "schema": SCHEMA,
        "adapter": {
            "name": manifest.name,
            "version": manifest.version,
            "weights_sha256": subject.weights_sha256,
        },
        "base": {"model": subject.base.name, "digest": subject.base.digest},
        "data": {
            "file": test.name,
            "sha256": hashlib.sha256(test.read_bytes()).hexdigest(),
            "rows": len(exam.plan.splits.test),
            "asked": len(task.rows),
            "shots": recipe.evaluation.shots,
        },
        "metric": metric.title,
        "scale": metric.digits,
        "reading": metric.reading,
        "machine": describe_machine(subject.base.device),
        "engine": {"dtype": engine.dtype, "weights": engine.weights, "kernels": engine.kernels, **held},
        "references": {
            name: round(metric.scores(task, given).score.score(everything), 6)
            for name, given in metric.references(task).items()
        },
        "command": _command(exam, engine),
        "arms": {arm.value: _arm(measured, arm) for arm, measured in arms.items()},
        "gains": {
            f"adapter - {arm.value}": _gain(adapter, other)
            for arm, other in arms.items()
            if arm is not ComparedArm.ADAPTER
        },
        **sections,
        "samples": [  # the first rows, not picked
            {
                "prompt": row.prompt,
                "gold": row.response,
                **{arm.value: measured.answers[place] for arm, measured in arms.items()},
            }
            for place, row in enumerate(task.rows[:SAMPLES])
        ],
    }


def _command(exam: Exam, engine: BaseInfo) -> str:
    """How to run it again."""
    folder, asked = exam.plan.folder, len(exam.task.rows)
    setting = f"LORA_ROUTER_QUANTIZE={engine.weights} " if engine.weights else ""
    named = folder.name if folder.parent.name == "adapters" else f"{folder.parent.name}/{folder.name}"
    options = f" --rows {asked}" if asked < len(exam.plan.splits.test) else ""
    return f"{setting}lora-router adapters evaluate {named}{options}"


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
