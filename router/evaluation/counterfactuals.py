"""Counterfactual prompts: the same text about different people (recipes/bias/NAME.toml)."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from router.errors import ConfigError
from router.training.complaints import describe
from router.training.recipe import Table

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
