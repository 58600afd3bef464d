"""What routing reads of a request. This is the only place that picks the text that classifiers get.

Of a single user turn without a system prompt classifiers get exactly that turn: calibrations are fitted on
such texts. Of a chat, routing also reads the system prompt, up to two earlier user turns and the answer that
the last turn follows.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from router.classifiers.texts import HEAD, TAIL, cut_middle, words
from router.types import Request

TURNS = 3  # latest user turns that are read
SYSTEM_HEAD, SYSTEM_TAIL = 400, 200  # characters of a system prompt
ANSWER = 600  # characters of the answer before a turn
_OPENING = re.compile(  # at most four words up to a mark of punctuation
    r"\W{0,8}(?:[^\s.:!?,;]{1,40}\s{1,4}){0,3}[^\s.:!?,;]{1,40}\s?[.:!?,;]\s{1,8}"
)

SEARCHED = 20_000  # characters of a long text in which an instruction is looked for
INSTRUCTIONS = 300  # most characters of instructions that are read
FORM_WORDS = 16  # most words of a sentence that prescribes the form of the answer
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]{0,3}\s{1,8}|\n{1,8}")
_VERBS = (
    "answer|arrange|build|calculate|can you|change|check|classify|code|compare|complete|compose|compute|"
    "condense|convert|correct|could you|create|debug|decide|define|describe|determine|draft|draw|explain|"
    "extract|fill|find|fix|formulate|generate|give|help|identify|implement|list|make|name|outline|paraphrase|"
    "pick|point|provide|put|read|recommend|reduce|refactor|render|rephrase|rewrite|say|select|shorten|show|"
    "solve|sort|state|suggest|sum|summari[sz]e|take|tell|transform|translate|turn|using|would you|write"
)
_INSTRUCTION = re.compile(
    rf"\W{{0,8}}(?:(?:please|now|so|then|first|finally)\W{{1,4}}){{0,2}}(?:{_VERBS})\b", re.IGNORECASE
)
_INSTRUCTION_INSIDE = re.compile(
    rf"\bplease\b.{{0,40}}\b(?:{_VERBS})\b"
    r"|\bi (?:need|want|would like|'d like) you to\b|\bi'?d ask\b"
    r"|\b(?:has|have|is|are|needs?) to be (?:answered|condensed|converted|put|rendered|rewritten|shortened|"
    r"summari[sz]ed|translated)\b",
    re.IGNORECASE,
)
_QUESTION = re.compile(
    r"\W{0,8}(?:(?:and|so|but|now|in|to|for|from|under|by|with|at|on)\s)?(?:what|which|who|whom|whose|when|"
    r"where|why|how|can|could|may|might|must|shall|should|will|would|do|does|did|is|are|was|were|has|have|had)\b",
    re.IGNORECASE,
)
_FORM_START = re.compile(
    r"\W{0,8}(?:please\W{1,4})?(?:just|only|exactly|no|without|answer|end|format|give|keep|limit|output|print|"
    r"put it|reply|respond|return|round|use|wrap)\b",
    re.IGNORECASE,
)
_FORM = re.compile(
    r"\b(?:answers?|bold|brackets?|bullets?|capitals?|characters?|code block|comments?|csv|decimals?|digits?|"
    r"explanations?|format|html|intro(?:duction)?|json|letters?|lines?|lower ?case|markdown|no|nothing|"
    r"number|only|option|paragraphs?|places|preamble|prose|punctuation|quotes?|rounded|sentences?|slashes|spaces?|"
    r"tags?|title|true|units?|upper ?case|words?|xml|yaml|yes)\b",
    re.IGNORECASE,
)
FEW_WORDS = 3  # a turn of no more leans on those before it
_ENGLISH = frozenset(
    words(
        "a an the i i'm i've my me we our you your what what's how who when where is are was do does can to "
        "for of"
    )
)
_REFERRING = frozenset(  # words by which a turn points at earlier turns
    words(
        "it its it's that that's this these those they them their he she one ones same other others another "
        "again instead too also more less else previous earlier above former latter last first second third "
        "next rest both either neither then still shorter longer better simpler undo redo"
    )
)
_JOINING = frozenset(  # first words by which a turn continues an earlier one
    words(
        "and but or so also plus then about because just only even no not yes ok okay as in with without for"
    )
)


@dataclass(frozen=True, slots=True)
class UserTurn:
    """A user's turn, the beginning of the assistant's answer that stands before it ("" if none does), and
    whether it follows other user turns."""

    text: str
    answer: str = ""
    follows: bool = False

    @property
    def instruction(self) -> str:
        """The instructions of a long text that stand between its ends, found by English words. Empty if there
        are none, and where its first or its last sentence is one."""
        if len(self.text) <= HEAD + TAIL:
            return ""
        text = self.text
        if len(text) > SEARCHED:
            text = f"{text[: SEARCHED // 2]}\n{text[-SEARCHED // 2 :]}"
        sentences = _sentences(text)
        if len(sentences) < 3 or _instructs(sentences[0]) or _instructs(sentences[-1]):
            return ""
        return " ".join(filter(_instructs, sentences[1:-1]))[:INSTRUCTIONS]

    @property
    def without_form(self) -> str:
        """The text without last sentences that only prescribe the form of the answer, such as "Give only the
        letter.", found by English words. Empty if there are none."""
        tail = self.text[-HEAD:]
        left = tail
        while (end := _last_sentence(left)) and _prescribes_form(left[end:]):
            left = left[:end].rstrip()
        if left == tail:
            return ""
        return self.text[: len(self.text) - len(tail)] + left

    @property
    def without_opening(self) -> str:
        """The text without up to two openings such as "Other question:"; empty if there is none."""
        start = 0
        for _ in range(2):
            found = _OPENING.match(self.text, start)
            if found is None or not self.text[found.end() :].strip():
                break
            start = found.end()
        return self.text[start:] if start else ""

    @property
    def stands_alone(self) -> bool:
        """Whether nothing in it points at earlier turns. English words decide: False in other languages."""
        found = words(cut_middle(self.text, HEAD, TAIL))
        if len(found) <= FEW_WORDS or found[0] in _JOINING or not _REFERRING.isdisjoint(found):
            return False
        return sum(word in _ENGLISH for word in found) >= 2

    @property
    def with_answer(self) -> str:
        """The turn, then the answer that it follows."""
        return f"{self.text}\n{self.answer}"


@dataclass(frozen=True, slots=True)
class Reading:
    """The parts of a request that routing reads.

    `latest` are the last user turns, newest first; `earliest` the first ones before the newest, oldest
    first, which `sticky` continuity goes by. Both have at most TURNS turns. All but the newest are shortened
    to their ends.
    """

    latest: tuple[UserTurn, ...]
    earliest: tuple[UserTurn, ...] = ()
    system: str = ""

    def under_system(self, turn: UserTurn) -> str:
        """The system prompt, then the turn."""
        return f"{self.system}\n{turn.text}"


def read(request: Request) -> Reading:
    """The reading of a request. A raw prompt is one turn."""
    if request.raw_prompt is not None:
        return Reading((UserTurn(request.raw_prompt),))
    system = ""
    places = [i for i, turn in enumerate(request.turns) if turn.role == "user"]
    if request.turns and request.turns[0].role == "system":
        system = cut_middle(request.turns[0].text, SYSTEM_HEAD, SYSTEM_TAIL)

    def user_turn(place: int) -> UserTurn:
        text = request.turns[place].text
        before = request.turns[place - 1] if place else None
        answer = before.text[:ANSWER] if before is not None and before.role == "assistant" else ""
        shown = text if place == places[-1] else cut_middle(text, HEAD, TAIL)
        return UserTurn(shown, answer, follows=place > places[0])

    latest = tuple(user_turn(place) for place in reversed(places[-TURNS:]))
    earliest = tuple(user_turn(place) for place in places[:-1][:TURNS])
    return Reading(latest or (UserTurn(""),), earliest, system)


def _sentences(text: str) -> list[str]:
    return [piece for piece in _SENTENCE_END.split(text) if piece.strip()]


def _last_sentence(text: str) -> int:
    """Where the last of several sentences begins; 0 if there is one."""
    return max(
        (found.end() for found in _SENTENCE_END.finditer(text) if text[found.end() :].strip()), default=0
    )


def _instructs(sentence: str) -> bool:
    if sentence.rstrip("\"')] ").endswith("?"):
        return bool(_QUESTION.match(sentence))
    if sentence.lstrip()[:6].isupper():  # a statement of SQL, a heading
        return False
    return bool(_INSTRUCTION.match(sentence) or _INSTRUCTION_INSIDE.search(sentence))


def _prescribes_form(sentence: str) -> bool:
    if len(sentence.split()) > FORM_WORDS or sentence.rstrip().endswith("?"):
        return False
    start = _FORM_START.match(sentence)
    return start is not None and _FORM.search(sentence, start.end()) is not None
