"""Bias: how often an answer changes when only the person in the prompt does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from router.evaluation.bootstrap import Estimate, Resampled
from router.evaluation.changed import Judged, distances, examples, judge, share
from router.evaluation.counterfactuals import CONTROL, groups, load_cases

Answers = Callable[[Sequence[str]], Sequence[str]]
EXAMPLES = 6  # changed answers shown


def measure(file: Path, base: Answers, adapter: Answers) -> dict[str, Any]:
    """Ask base and adapter the counterfactual prompts of `file`; count the answers that change.

    `base` and `adapter` take user prompts and give the greedy answers as text, in order: both under the
    adapter's own prompt template, as the arms of the report. An answer counts as changed if it differs from
    the answer to its group's reference prompt after the swapped words are mapped back (case, white space
    and punctuation around words folded). Intervals are bootstraps over texts, with all groups of a text
    together; differences are paired.

    Returns {"file", "texts", "groups", "prompts", "rows": [{"what", "variants", "base", "adapter",
    "difference", "over_control", "base_distance", "adapter_distance"}], "examples"}. Rows are "all" (every
    attribute but the control), then the attributes; estimates are {"value", "low", "high"}. `over_control`
    is the adapter's share minus its share for the control words (None without a control). A distance is
    the mean share of words that differ.
    Returns {"missing": FILE} if there is no such file. Raises ConfigError if it is wrong.
    """
    named = "/".join(file.parts[-2:])
    if not file.is_file():
        return {"missing": named}
    made = groups(load_cases(file))
    prompts = [prompt for group in made for prompt in group.prompts]
    judged = {arm: judge(made, list(ask(prompts))) for arm, ask in (("base", base), ("adapter", adapter))}
    attributes = list(dict.fromkeys(group.attribute for group in made))
    wanted = {"all": [name for name in attributes if name != CONTROL]} | {name: [name] for name in attributes}
    control = share(judged["adapter"], [CONTROL]) if CONTROL in attributes else None
    return {
        "file": named,
        "texts": len({group.text for group in made}),
        "groups": len(made),
        "prompts": len(prompts),
        "rows": [_row(what, names, judged, control) for what, names in wanted.items()],
        "examples": list(examples(judged["adapter"], unless=CONTROL))[:EXAMPLES],
    }


def markdown(section: Mapping[str, Any]) -> list[str]:
    """The section as lines of a page."""
    if "missing" in section:
        return [
            f"Bias: not measured, there are no counterfactual prompts: {section['missing']} is not there."
        ]
    lines = [
        f"{section['prompts']} counterfactual prompts in {section['groups']} groups on {section['texts']}",
        f"texts (`{section['file']}`): the share of answers that change when only the words for a person do,",
        "after the swapped words are mapped back. The control swaps words that say nothing about a person.",
        "",
        "| swapped | variants | base | adapter | adapter - base | adapter - its control |",
        "|---|---|---|---|---|---|",
    ]
    for row in section["rows"]:
        shown = [_bracketed(row[name]) for name in ("base", "adapter", "difference", "over_control")]
        lines.append(f"| {row['what']} | {row['variants']} | {' | '.join(shown)} |")
    if section["examples"]:
        lines += ["", "| changed by | reference | variant | answer | answer to the variant |"]
        lines.append("|---|---|---|---|---|")
    for found in section["examples"]:
        names = ("attribute", "reference", "variant", "answer", "variant_answer")
        lines.append("| " + " | ".join(_cell(found[name]) for name in names) + " |")
    return lines


def _row(
    what: str, names: Sequence[str], judged: Mapping[str, Sequence[Judged]], control: Resampled | None
) -> dict[str, Any]:
    base, adapter = (share(judged[arm], names) for arm in ("base", "adapter"))
    beside = adapter.minus(control) if control and what != CONTROL else None
    apart = {arm: distances(found, names) for arm, found in judged.items()}
    return {
        "what": what,
        "variants": len(apart["adapter"]),
        "base": _rounded(base.estimate()),
        "adapter": _rounded(adapter.estimate()),
        "difference": _rounded(adapter.minus(base)),
        "over_control": _rounded(beside) if beside else None,
        **{f"{arm}_distance": round(float(np.mean(values)), 6) for arm, values in apart.items()},
    }


def _rounded(estimate: Estimate) -> dict[str, float]:
    return {name: round(number, 6) for name, number in asdict(estimate).items()}


def _bracketed(value: Mapping[str, float] | None) -> str:
    return "" if value is None else f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def _cell(text: str, longest: int = 160) -> str:
    flat = " ".join(text.split()).replace("|", "\\|")
    return flat if len(flat) <= longest else flat[:longest] + "…"
