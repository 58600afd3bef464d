"""Bias: how often an answer changes when only the person in the prompt does.

Counterfactual prompts (recipes/bias/NAME.toml) say the same about different people.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, ValidationError, model_validator

from router.errors import ConfigError
from router.extensions.training.evaluation.scoring import MeanScorer, Resampled, resample
from router.extensions.training.recipe import RecipeTable, describe_problems

CONTROL = "control"  # an attribute that says nothing about a person: how often any change changes the answer
EXAMPLES = 6  # changed answers shown
PUNCTUATION = ".,;:!\"'“”«»"
Words = dict[str, str]
AskTexts = Callable[[Sequence[str]], Sequence[str]]  # user prompts in, answers out, in order


def measure_bias(file: Path, base: AskTexts, adapter: AskTexts) -> dict[str, Any]:
    """Ask base and adapter the counterfactual prompts of `file`; count the answers that change.

    `base` and `adapter` take user prompts and give the greedy answers as text, in order: both under the
    adapter's own prompt template, as the arms of the report. An answer counts as changed if it differs from
    the answer to its group's reference prompt after the swapped words are mapped back (case, white space
    and punctuation around words folded). Intervals are bootstraps over texts, with all groups of a text
    together; differences are paired.

    Returns {"file", "texts", "groups", "prompts", "rows": [{"what", "variants", "base", "adapter",
    "difference", "over_control"}], "examples"}. Rows are "all" (every attribute but the control), then the
    attributes; estimates are {"value", "low", "high"}. `over_control` is the adapter's share minus its share
    for the control words (None without a control).
    Raises ConfigError if the file cannot be read or is wrong.
    """
    groups = make_groups(load_cases(file))
    prompts = [prompt for group in groups for prompt in group.prompts]
    answerers = (("base", base), ("adapter", adapter))
    compared = {arm: compare_answers(groups, list(ask(prompts))) for arm, ask in answerers}
    attributes = list(dict.fromkeys(group.attribute for group in groups))
    wanted = {"all": [name for name in attributes if name != CONTROL]} | {name: [name] for name in attributes}
    control = share_changed(compared["adapter"], [CONTROL]) if CONTROL in attributes else None
    return {
        "file": "/".join(file.parts[-2:]),
        "texts": len({group.text for group in groups}),
        "groups": len(groups),
        "prompts": len(prompts),
        "rows": [_row(what, names, compared, control) for what, names in wanted.items()],
        "examples": list(changed_answers(compared["adapter"], unless=CONTROL))[:EXAMPLES],
    }


def _row(
    what: str,
    names: Sequence[str],
    compared: Mapping[str, Sequence[ComparedGroup]],
    control: Resampled | None,
) -> dict[str, Any]:
    base, adapter = (share_changed(compared[arm], names) for arm in ("base", "adapter"))
    beside = adapter.minus(control) if control and what != CONTROL else None
    return {
        "what": what,
        "variants": len(changes_of(compared["adapter"], names)),
        "base": base.rounded(),
        "adapter": adapter.rounded(),
        "difference": adapter.minus(base).rounded(),
        "over_control": beside.rounded() if beside else None,
    }


# -- counterfactual prompts


class Cases(RecipeTable):
    """The file: every text is filled with every value of every attribute.

    `texts` have places in braces, `{person}` or, to begin a sentence, `{Person}`. An attribute is a list of
    tables place -> words; the first is the reference. A table may name words that no text has a place for:
    they are only looked for in answers (`french = "allemand"` beside `person = "German"`).
    """

    prompt: str = "{text}"
    texts: tuple[str, ...] = Field(min_length=2)
    attributes: dict[str, tuple[Words, ...]] = Field(min_length=1)

    @model_validator(mode="after")
    def _fits_together(self) -> Cases:
        if "{text}" not in self.prompt:
            raise ValueError("prompt must contain {text}")
        for name, values in self.attributes.items():
            if len(values) < 4:
                raise ValueError(
                    f"attribute {name} has {len(values)} values: needs a reference and 3 variants"
                )
            if any(value.keys() != values[0].keys() for value in values):
                raise ValueError(f"attribute {name}: every value must name {', '.join(values[0])}")
            for text in self.texts:
                places = {found.lower() for found in re.findall(r"\{(\w+)\}", text)}
                if not places or not places <= values[0].keys():
                    missing = ", ".join(sorted(places - values[0].keys())) or "no place in braces"
                    raise ValueError(f"attribute {name} does not fit the text {text[:60]!r}: {missing}")
        return self


@dataclass(frozen=True, slots=True)
class Group:
    """Prompts that differ in the words of one attribute; the first is the reference."""

    attribute: str
    text: int  # which text: groups of one text are not independent
    values: tuple[Words, ...]
    prompts: tuple[str, ...]


def load_cases(file: Path) -> Cases:
    """Parse a file of cases. Raises ConfigError that says everything that is wrong with it."""
    try:
        raw: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))
        return Cases.model_validate(raw)
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error
    except ValidationError as error:
        raise ConfigError(f"{file}: " + "; ".join(describe_problems(error, Cases))) from error


def make_groups(cases: Cases) -> list[Group]:
    """One group for every text and attribute."""
    return [
        Group(attribute, place, values, tuple(cases.prompt.replace("{text}", _fill(text, v)) for v in values))
        for place, text in enumerate(cases.texts)
        for attribute, values in cases.attributes.items()
    ]


def _fill(text: str, value: Words) -> str:
    for name, words in value.items():
        text = text.replace(f"{{{name}}}", words)
        text = text.replace(f"{{{name.capitalize()}}}", words[:1].upper() + words[1:])
    return text


def map_back(answer: str, variant: Mapping[str, str], reference: Mapping[str, str]) -> str:
    """`answer` with the words of `variant` replaced by those of `reference`, all in one pass.

    Whole phrases go first; where both phrases have the same number of words, single words follow, so that
    a surname alone is mapped too.
    """
    swaps: dict[str, str] = {}
    for name, words in variant.items():
        theirs, ours = folded(words), folded(reference[name])
        swaps.setdefault(theirs, ours)
        if len(theirs.split()) == len(ours.split()):
            for word, other in zip(theirs.split(), ours.split(), strict=True):
                swaps.setdefault(word, other)
    longest = sorted(swaps, key=len, reverse=True)
    pattern = "|".join(rf"(?<!\w){re.escape(words)}(?!\w)" for words in longest)
    return re.sub(pattern, lambda found: swaps[found[0]], folded(answer))


def folded(text: str) -> str:
    """Case, white space and punctuation around words folded: "Mr. Miller" is "mr miller".

    Brackets and operators stay, since they carry meaning in code.
    """
    words = (word.strip(PUNCTUATION) for word in text.casefold().split())
    return " ".join(word for word in words if word)


# -- which answers changed, and how often


@dataclass(frozen=True, slots=True)
class ComparedGroup:
    """A group with its answers, and whether each variant's answer is another than the reference's."""

    group: Group
    answers: tuple[str, ...]
    changes: tuple[bool, ...]


def compare_answers(groups: Sequence[Group], answers: Sequence[str]) -> list[ComparedGroup]:
    """Deal `answers` out to the prompts of all groups, in order, and compare inside each group.

    Raises ValueError unless there is one answer for each prompt.
    """
    wanted = sum(len(group.prompts) for group in groups)
    if len(answers) != wanted:
        raise ValueError(f"asked {wanted} counterfactual prompts, got {len(answers)} answers")
    compared, start = [], 0
    for group in groups:
        reference, *variants = own = tuple(answers[start : start + len(group.prompts)])
        start += len(own)
        mapped = (
            map_back(answer, values, group.values[0])
            for answer, values in zip(variants, group.values[1:], strict=True)
        )
        changes = tuple(other != folded(reference) for other in mapped)
        compared.append(ComparedGroup(group, own, changes))
    return compared


def changes_of(compared: Sequence[ComparedGroup], attributes: Sequence[str]) -> list[bool]:
    """Of all variants of these attributes."""
    return [value for found in compared if found.group.attribute in attributes for value in found.changes]


def share_changed(compared: Sequence[ComparedGroup], attributes: Sequence[str]) -> Resampled:
    """The share of changed answers, resampled by text, since groups of one text are not independent.

    Every text has the same groups, so that all have the same weight.
    """
    by_text: dict[int, list[ComparedGroup]] = {}
    for found in compared:
        by_text.setdefault(found.group.text, []).append(found)
    shares = [float(np.mean(changes_of(of_text, attributes))) for of_text in by_text.values()]
    return resample(MeanScorer(shares), len(shares))


def changed_answers(compared: Sequence[ComparedGroup], unless: str) -> Iterator[dict[str, str]]:
    """Changed answers, of each group the first one; none of the attribute `unless`."""
    for found in compared:
        changed = next((place for place, value in enumerate(found.changes, 1) if value), 0)
        if changed and found.group.attribute != unless:
            yield {
                "attribute": found.group.attribute,
                "reference": found.group.prompts[0],
                "variant": found.group.prompts[changed],
                "answer": found.answers[0],
                "variant_answer": found.answers[changed],
            }
