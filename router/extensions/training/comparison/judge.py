"""A model compares two answers: the base or an adapter of the same server, in both orders.

Language models favour the answer that stands first or last (Zheng et al. 2023, arXiv:2306.05685). So each
pair is judged twice, with the answers changed over. Two judgements that contradict each other are a tie.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from router.errors import ConfigError

if TYPE_CHECKING:
    from router.client import AsyncClient

FIRST, SECOND, TIE = "A", "B", "tie"
FIELDS = ("prompt", "reference", "a", "b")
PROMPT = """\
Two assistants answered the same request. Judge which answer is more correct and helpful. Length is no merit.

Request:
$prompt
$reference
Answer A:
$a

Answer B:
$b

Which answer is better? Say A, B or tie."""
REFERENCE = "\nA right answer:\n{}\n"


@dataclass(frozen=True, slots=True)
class PairJudgement:
    """`score` of the new answer: 1 better, 0 worse, 0.5 a tie. `named_first`: how often, of two, A was it."""

    score: float
    contradicts: bool = False
    named_first: int = 0


class ModelJudge:
    """Asks one adapter, or `base`, which of two answers is better."""

    def __init__(self, client: AsyncClient, adapter: str, template: str = PROMPT) -> None:
        self._client, self._adapter, self._template = client, adapter, Template(template)

    async def judge(self, prompt: str, reference: str, old: str, new: str) -> PairJudgement:
        """Both orders. Raises ClientError where the server refuses one, such as for its length."""
        if old.strip() == new.strip():
            return PairJudgement(0.5)
        one = await self._named(prompt, reference, old, new)
        other = await self._named(prompt, reference, new, old)
        named_first = [one, other].count(FIRST)
        if one == SECOND and other == FIRST:
            return PairJudgement(1.0, named_first=named_first)
        if one == FIRST and other == SECOND:
            return PairJudgement(0.0, named_first=named_first)
        return PairJudgement(0.5, contradicts=one == other != TIE, named_first=named_first)

    async def _named(self, prompt: str, reference: str, a: str, b: str) -> str:
        known = REFERENCE.format(reference) if reference else ""
        text = self._template.safe_substitute(prompt=prompt, reference=known, a=a, b=b)
        answer = await self._client.generate(
            text, adapter=self._adapter, choices=(FIRST, SECOND, TIE), temperature=0.0, max_tokens=4
        )
        return answer.text.strip()


def read_template(path: Path | None) -> str:
    """A judge's prompt from a file, with $prompt, $a, $b and, optionally, $reference. Raises ConfigError."""
    if path is None:
        return PROMPT
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    template = Template(text)
    if not template.is_valid():
        raise ConfigError(f"{path}: a dollar sign that is no field is written $$")
    named = set(template.get_identifiers())
    if unknown := sorted(named - set(FIELDS)):
        raise ConfigError(f"{path}: ${unknown[0]} is unknown; there are {', '.join('$' + f for f in FIELDS)}")
    if missing := [field for field in ("prompt", "a", "b") if field not in named]:
        raise ConfigError(f"{path}: ${missing[0]} is missing, so the judge would not see it")
    return text
