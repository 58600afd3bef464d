"""Prompts to token ids. Serving and training both render through here, so they cannot differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from router.engine.base import Prompt
from router.engine.text.chat_template import ChatTemplate, Piece
from router.engine.text.text_encoder import TextEncoder
from router.errors import AdapterRejected
from router.types import PromptTemplate, Turn

_FIELD = "{prompt}"


class PromptEncoder:
    """Encodes prompts for one base. Thread-safe; time grows linearly with the text.

    Turns are rendered by the base's chat template. A base without one gets the texts with an empty
    line between them (`system`, then the turns). Text of turns, of adapters' templates and of raw
    prompts never produces a special token, whatever it spells.
    """

    def __init__(self, tokenizer: Any) -> None:
        """`tokenizer`: any transformers tokenizer; it is not changed."""
        self._chat = ChatTemplate(tokenizer) if tokenizer.chat_template else None
        self._text = TextEncoder(tokenizer, self._chat.source if self._chat else "")
        bos = tokenizer.bos_token_id
        self._bos = [bos] if bos is not None and bos in tokenizer("")["input_ids"] else []
        self._eos: int | None = tokenizer.eos_token_id
        self._answer_end = self._find_answer_end()

    @property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end an answer: the chat template's and the tokenizer's."""
        return frozenset(i for i in (self._answer_end, self._eos) if i is not None)

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt, ready to be continued.

        Raises InvalidRequest if the base's template refuses the order of roles, AdapterRejected if
        the adapter's template has no place for the prompt.
        """
        if prompt.raw is not None:
            begin = [] if prompt.follows else self._bos
            return begin + self._text.encode([Piece(prompt.raw, from_template=False)], follows=prompt.follows)
        turns = apply_template(prompt.turns, prompt.template)
        if self._chat is not None and turns:
            return self._text.encode(self._chat.render(turns))
        text = "\n\n".join(turn.text for turn in turns)
        return self._bos + self._text.encode([Piece(text, from_template=False)])

    def encode_example(self, prompt: Prompt, response: str) -> tuple[list[int], int]:
        """A training example: ids of prompt, response and end token, and how many are the prompt's."""
        ids = self.encode(prompt)
        answer = self._text.encode([Piece(response, from_template=False)], follows=bool(ids))
        chat = prompt.raw is None and self._chat is not None
        end = self._answer_end if chat else self._eos
        return ids + answer + ([end] if end is not None else []), len(ids)

    def _find_answer_end(self) -> int | None:
        """The first control token the chat template writes after an answer, else the tokenizer's end."""
        if self._chat is None:
            return self._eos
        pieces = self._chat.render([Turn("user", "-"), Turn("assistant", "-")], answer_follows=False)
        return next(iter(self._text.control_ids(pieces[-1].text)), self._eos)


def apply_template(turns: Sequence[Turn], template: PromptTemplate) -> list[Turn]:
    """The conversation with an adapter's `[prompt]` applied.

    The last user turn goes into the template, by literal replacement; the adapter's system text
    comes first unless the conversation brings its own.
    """
    if _FIELD not in template.template:
        raise AdapterRejected(f"the adapter's prompt template has no {_FIELD}")
    result = list(turns)
    last = max((i for i, turn in enumerate(result) if turn.role == "user"), default=None)
    if last is not None:
        result[last] = Turn("user", template.template.replace(_FIELD, result[last].text))
    if template.system and not any(turn.role == "system" for turn in result):
        result.insert(0, Turn("system", template.system))
    return result
