"""Prompts as bytes, for engines that have no tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from router.engine.base import Prompt, common_length
from router.errors import PromptTooLong


class ByteTokens:
    """The part of an `Engine` that encodes: a token is a byte of the prompt's text."""

    def encode(
        self, prompt: Prompt, most: int | None = None, check: Callable[[], None] | None = None
    ) -> list[int]:
        """The bytes of the prompt's text."""
        if check is not None:
            check()
        asked = len(prompt.raw or "") + sum(len(turn.text) for turn in prompt.turns)
        if most is not None and asked > most:
            raise PromptTooLong(most, asked, at_least=True)
        text = _text(prompt)
        if most is not None and len(text) > most:
            raise PromptTooLong(most, len(text))
        return list(text)

    def shared(self, prompt: Prompt, tokens: Sequence[int]) -> int:
        """Bytes of the template before what is asked; nothing is cached here."""
        if prompt.raw is not None:
            return 0
        before = prompt.template.template.partition("{prompt}")[0]
        return common_length("\n".join(filter(None, [prompt.template.system, before])).encode(), tokens)


def _text(prompt: Prompt) -> bytes:
    """System text, turns and the last turn in its template, a line each; or the raw prompt."""
    if prompt.raw is not None:
        return prompt.raw.encode()
    system = "" if prompt.turns and prompt.turns[0].role == "system" else prompt.template.system
    *before, last = prompt.turns
    asked = prompt.template.template.replace("{prompt}", last.text)
    return "\n".join(filter(None, [system, *(turn.text for turn in before), asked])).encode()


def text_of(tokens: Sequence[int]) -> str:
    """The text that `encode` made these tokens of."""
    return bytes(tokens).decode(errors="replace")
