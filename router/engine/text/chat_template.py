"""A base's own chat template, rendered so that what it writes stays apart from what people write."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from router.errors import FieldViolation, InvalidRequest
from router.types import Turn

# Stands for a turn's text while the template renders. The unit separators count as white space, so
# where the template strips its contents they are gone afterwards, and the turn's text is stripped too.
_MARK = "\x1fROUTER-TURN-{}-TEXT\x1f"
_FIND = re.compile("(\x1f?)ROUTER-TURN-([0-9]+)-TEXT(\x1f?)")


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a rendered conversation; only the template's own may name special tokens."""

    text: str
    from_template: bool


class ChatTemplate:
    """The chat template of a tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.source: str = tokenizer.get_chat_template()

    def render(self, turns: Sequence[Turn], answer_follows: bool = True) -> list[Piece]:
        """The conversation, up to where an answer begins if one follows.

        A template without a system role gets that text before the first user turn's. Raises
        InvalidRequest if the template refuses the order of roles.
        """
        pieces = self._try(turns, answer_follows)
        if pieces is None and turns[0].role == "system":
            pieces = self._try(_without_system(turns), answer_follows)
        if pieces is None:
            text = "this base model's chat template refuses this order of roles"
            raise InvalidRequest([FieldViolation("input.chat.messages", text)])
        return pieces

    def _try(self, turns: Sequence[Turn], answer_follows: bool) -> list[Piece] | None:
        """None if the template raises, or leaves out a turn or changes their order."""
        messages = [{"role": turn.role, "content": _MARK.format(i)} for i, turn in enumerate(turns)]
        try:
            rendered = self._tokenizer.apply_chat_template(
                messages, chat_template=self.source, add_generation_prompt=answer_follows, tokenize=False
            )
        except TemplateError:
            return None
        order = [int(found[2]) for found in _FIND.finditer(rendered)]
        return list(_pieces(rendered, turns)) if order == list(range(len(turns))) else None


def _pieces(rendered: str, turns: Sequence[Turn]) -> Iterator[Piece]:
    place = 0
    for found in _FIND.finditer(rendered):
        yield Piece(rendered[place : found.start()], from_template=True)
        text = turns[int(found[2])].text
        text = text if found[1] else text.lstrip()
        yield Piece(text if found[3] else text.rstrip(), from_template=False)
        place = found.end()
    yield Piece(rendered[place:], from_template=True)


def _without_system(turns: Sequence[Turn]) -> list[Turn]:
    system, *rest = turns
    first = next((i for i, turn in enumerate(rest) if turn.role == "user"), None)
    if first is None:
        return [Turn("user", system.text), *rest]
    rest[first] = Turn("user", f"{system.text}\n\n{rest[first].text}")
    return rest
