"""Feedback on one answer, in plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["good", "bad", "corrected"]
VERDICTS: tuple[Verdict, ...] = ("good", "bad", "corrected")
RAW = "raw"  # the role of a raw prompt in `Feedback.messages`
VALUES: dict[Verdict, float] = {"good": 1.0, "bad": 0.0, "corrected": 0.0}  # as an outcome of experiments

# Bytes of UTF-8 that a text may have.
MAX_CORRECTED, MAX_COMMENT, MAX_PROMPT, MAX_ANSWER = 32 << 10, 2 << 10, 64 << 10, 32 << 10


@dataclass(frozen=True, slots=True)
class Feedback:
    """`unit` is the unit's hash, "" if there was none. `adapter` is a name, `base` or `mixture`.

    `should_have_been` is the name of the adapter that should have answered, `base`, or "" where that was not
    said.

    `messages` are (role, text) of the request as plugins left it; the one message of a raw prompt has the
    role `raw`. The adapter's own system text and template are not among them. `answer` is the whole answer,
    None if it is not known, was cut off by max_tokens, or failed. Without consent to texts `messages` is
    empty, `answer` and `corrected` are None, and `comment` is empty, whatever the verdict.
    """

    response_id: str
    time: float  # unix seconds
    tenant: str
    unit: str
    adapter: str
    version: str
    verdict: Verdict
    messages: tuple[tuple[str, str], ...] = ()
    answer: str | None = None
    corrected: str | None = None
    comment: str = ""
    digest: str = ""  # sha256 of the adapter's files, hex
    should_have_been: str = ""

    @property
    def has_texts(self) -> bool:
        """Whether it was kept with a text."""
        return bool(self.messages or self.answer or self.corrected or self.comment)
