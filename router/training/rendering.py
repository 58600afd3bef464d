"""Rows to tokens, by the code that renders prompts when serving, so that there is no skew."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from router.engine.base import Prompt
from router.engine.text.prompt import PromptEncoder
from router.training.batch import Example
from router.training.data import Row
from router.types import PromptTemplate, Turn


@dataclass(frozen=True, slots=True)
class Rendering:
    """An adapter's prompt template over a base's tokenizer."""

    tokenizer: Any
    encoder: PromptEncoder
    template: PromptTemplate

    @classmethod
    def of(cls, tokenizer: Any, template: PromptTemplate) -> Rendering:
        """Wrap a transformers tokenizer."""
        return cls(tokenizer, PromptEncoder(tokenizer), template)

    def example(self, row: Row, before: Sequence[Row] = ()) -> Example:
        """A row with its answer; rows in `before` are turns of the same conversation, answered."""
        turns: list[Turn] = []
        for shown in before:
            turns += [Turn("user", shown.prompt), Turn("assistant", shown.response)]
        prompt = Prompt(turns=(*turns, Turn("user", row.prompt)), template=self.template)
        tokens, length = self.encoder.encode_example(prompt, row.response)
        return Example(tuple(tokens[:length]), tuple(tokens[length:]))

    def examples(self, rows: Iterable[Row]) -> list[Example]:
        """Every row on its own."""
        return [self.example(row) for row in rows]

    def prompt(self, text: str) -> tuple[int, ...]:
        """A question on its own, ready to be answered."""
        return tuple(self.encoder.encode(Prompt(turns=(Turn("user", text),), template=self.template)))

    def answer(self, text: str) -> tuple[int, ...]:
        """Tokens of an answer with its end."""
        return self.example(Row("?", text, "")).answer

    @property
    def ends(self) -> list[int]:
        """Tokens that end an answer."""
        return sorted(self.encoder.end_ids)

    def text(self, tokens: Sequence[int]) -> str:
        """Tokens of an answer as text."""
        decoded: str = self.tokenizer.decode(tokens, skip_special_tokens=True)
        return decoded.strip()
