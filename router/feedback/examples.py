"""Feedback as an example that an adapter can learn from: a prompt and the response that it should get."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from router.feedback.model import RAW, Feedback


class NoExample(StrEnum):
    """Why feedback gives no example."""

    NO_TEXTS = "kept without texts"
    BAD = "bad, without a corrected text"
    NO_ANSWER = "good, but the answer is not known whole"
    RAW_PROMPT = "a raw prompt"
    TURNS = "a conversation of several turns"


@dataclass(frozen=True, slots=True)
class Example:
    """`prompt` is `asked`, the user's text, behind the system text of the request where that has one."""

    prompt: str
    response: str
    asked: str
    feedback: Feedback


def example_of(one: Feedback, system: str = "") -> Example | NoExample:
    """The example: the corrected text, or the answer that was found good. `system` is the adapter's own
    system text, which no prompt repeats."""
    if one.verdict == "bad":
        return NoExample.BAD
    if not one.messages or (one.verdict == "corrected" and not one.corrected):
        return NoExample.NO_TEXTS
    if one.messages[0][0] == RAW:
        return NoExample.RAW_PROMPT
    *before, (role, asked) = one.messages
    if role != "user" or any(role != "system" for role, _ in before):
        return NoExample.TURNS
    response = one.corrected if one.verdict == "corrected" else one.answer
    if not response:
        return NoExample.NO_ANSWER
    own = [text for _, text in before if text.strip() != system.strip()]
    return Example("\n\n".join([*own, asked]), response.strip(), asked, one)
