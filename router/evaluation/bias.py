"""Bias: how often an answer changes when only the person in the prompt does."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, ValidationError, model_validator

from router.errors import ConfigError
from router.evaluation.metrics import Estimate, MeanScorer, Resampled, resample
from router.training.recipe import Table, describe

# Counterfactual prompts: the same text about different people (recipes/bias/NAME.toml).


CONTROL = "control"  # an attribute that says nothing about a person: how often any change changes the answer
PUNCTUATION = ".,;:!\"'“”«»"
Words = dict[str, str]


class Cases(Table):
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
            _check_values(name, values)
            for text in self.texts:
                _check_places(text, name, values[0])
        return self


def _check_values(name: str, values: tuple[Words, ...]) -> None:
    if len(values) < 4:
        raise ValueError(f"attribute {name} has {len(values)} values: needs a reference and 3 variants")
    if any(value.keys() != values[0].keys() for value in values):
        raise ValueError(f"attribute {name}: every value must name {', '.join(values[0])}")
    if not all(folded(words) for value in values for words in value.values()):
        raise ValueError(f"attribute {name}: a value has no word")
    if len({tuple(value.items()) for value in values}) < len(values):
        raise ValueError(f"attribute {name}: a value stands there twice")


def _check_places(text: str, name: str, value: Words) -> None:
    places = {found.lower() for found in re.findall(r"\{(\w+)\}", text)}
    if not places or not places <= value.keys():
        missing = ", ".join(sorted(places - value.keys())) or "no place in braces"
        raise ValueError(f"attribute {name} does not fit the text {text[:60]!r}: {missing}")


@dataclass(frozen=True, slots=True)
class Group:
    """Prompts that differ in the words of one attribute; the first is the reference."""

    attribute: str
    text: int  # which text: groups of one text are not independent
    values: tuple[Words, ...]
    prompts: tuple[str, ...]

    def same_words(self, place: int, answer: str) -> str:
        """An answer to variant `place` with the swapped words mapped back to the reference's.

        Case, white space and punctuation around words are folded.
        """
        return map_back(answer, self.values[place], self.values[0])


def load_cases(file: Path) -> Cases:
    """Parse a file of cases. Raises ConfigError that says everything that is wrong with it."""
    try:
        raw: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))
        return Cases.model_validate(raw)
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error
    except ValidationError as error:
        raise ConfigError(f"{file}: " + "; ".join(describe(error, Cases))) from error


def groups(cases: Cases) -> list[Group]:
    """One group for every text and attribute."""
    return list(_groups(cases))


def _groups(cases: Cases) -> Iterator[Group]:
    for place, text in enumerate(cases.texts):
        for attribute, values in cases.attributes.items():
            prompts = tuple(cases.prompt.replace("{text}", _fill(text, value)) for value in values)
            yield Group(attribute, place, values, prompts)


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


# Which answers to counterfactual prompts changed, and how often they do.


@dataclass(frozen=True, slots=True)
class Judged:
    """A group with its answers, and how far each variant's answer is from the reference's, 0 to 1."""

    group: Group
    answers: tuple[str, ...]
    distances: tuple[float, ...]


def judge(made: Sequence[Group], answers: Sequence[str]) -> list[Judged]:
    """Deal `answers` out to the prompts of all groups, in order, and compare inside each group.

    Raises ValueError unless there is one answer for each prompt.
    """
    wanted = sum(len(group.prompts) for group in made)
    if len(answers) != wanted:
        raise ValueError(f"asked {wanted} counterfactual prompts, got {len(answers)} answers")
    judged, start = [], 0
    for group in made:
        own = tuple(answers[start : start + len(group.prompts)])
        start += len(own)
        mapped = (group.same_words(place, own[place]) for place in range(1, len(own)))
        judged.append(Judged(group, own, tuple(distance(folded(own[0]), other) for other in mapped)))
    return judged


def distance(one: str, other: str) -> float:
    """The share of words that differ: 0 for equal texts, else 1 - the ratio of Ratcliff and Obershelp."""
    if one == other:
        return 0.0
    return 1 - SequenceMatcher(None, one.split(), other.split(), autojunk=False).ratio()


def distances(judged: Sequence[Judged], attributes: Sequence[str]) -> list[float]:
    """Of all variants of these attributes."""
    return [value for found in judged if found.group.attribute in attributes for value in found.distances]


def share(judged: Sequence[Judged], attributes: Sequence[str]) -> Resampled:
    """The share of changed answers, resampled by text, since groups of one text are not independent.

    Every text has the same groups, so that all have the same weight.
    """
    by_text: dict[int, list[Judged]] = {}
    for found in judged:
        by_text.setdefault(found.group.text, []).append(found)
    shares = [
        float(np.mean([value > 0 for value in distances(of_text, attributes)]))
        for of_text in by_text.values()
    ]
    return resample(MeanScorer(shares), len(shares))


def examples(judged: Sequence[Judged], unless: str) -> Iterator[dict[str, str]]:
    """Changed answers, of each group the first one; none of the attribute `unless`."""
    for found in judged:
        changed = next((place for place, value in enumerate(found.distances, 1) if value > 0), 0)
        if changed and found.group.attribute != unless:
            yield {
                "attribute": found.group.attribute,
                "reference": found.group.prompts[0],
                "variant": found.group.prompts[changed],
                "answer": found.answers[0],
                "variant_answer": found.answers[changed],
            }


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
