"""What routing reads of a request, and how a conversation carries its adapter from turn to turn.

`routing_input` is the only place that picks the texts that classifiers get. Of a single user turn without a
system prompt they get exactly that turn: calibrations are fitted on such texts. Of a chat, routing also
reads the system prompt, up to two earlier user turns and the answer that the last turn follows.

The rule is `continued`, a pure function. `choose` applies it to a request:

- A chat carries its own past. The decisions of its earlier user turns are computed again from their text,
  so that every edge comes to the same decision, also after a restart, and nothing is stored.
- A caller that sends one turn at a time names a conversation. The result of its last turn is kept in
  `RecentByTenant`.
"""

from __future__ import annotations

import re
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

from router.classifiers.texts import HEAD, TAIL, cut_middle, words
from router.names import BASE
from router.routing.policy import Conclusion, Leaning
from router.types import Continuity, LostVote, Progress, Reason, Request, Vote

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
class RoutingInput:
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


def routing_input(request: Request) -> RoutingInput:
    """The texts of a request. A raw prompt is one turn."""
    if request.raw_prompt is not None:
        return RoutingInput((UserTurn(request.raw_prompt),))
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
    return RoutingInput(latest or (UserTurn(""),), earliest, system)


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


# -- how a conversation goes on

SURE_NONE = 0.999  # chance of "none of the adapters" from which a turn is a decision for the base
LIKELY_NONE = 0.95  # the same for a turn that points at nothing before it
GUESS = 0.5  # confidence of a guess that another reading may confirm
MOST_UNDECIDED = 2  # turns in a row without a decision of their own through which an adapter stays
QUIET_SECONDS = 30 * 60.0  # after which a named conversation is over
MOST_REMEMBERED, MOST_OF_A_TENANT = 16_384, 4_096


@dataclass(frozen=True, slots=True)
class Classification:
    """The result of classifying one text. `leaning` counts where the conclusion names no adapter."""

    conclusion: Conclusion
    leaning: Leaning = Leaning()
    votes: Sequence[Vote] = ()
    lost: tuple[LostVote, ...] = ()


class Classify(Protocol):
    """Has a text classified."""

    def __call__(self, text: str, again: bool = False) -> Awaitable[Classification]:
        """The result; with `again` a recent result on the same text will do."""
        ...


@dataclass(frozen=True, slots=True)
class Previous:
    """The decision of the turns before; adapter "" is the base.

    `undecided` is how many of them in a row, up to the latest, had no decision of their own.
    """

    conclusion: Conclusion
    undecided: int = 0

    @property
    def name(self) -> str:
        """Of the adapter, or `base`."""
        return self.conclusion.adapter or BASE


@dataclass(frozen=True, slots=True)
class TurnResult:
    """The result of a turn by itself. `decided`: it names an adapter, or is surely for none of them.

    `alone`: classifiers got the turn's text and nothing else, as a calibration expects it.
    """

    classification: Classification
    decided: bool
    alone: bool = True


@dataclass(frozen=True, slots=True)
class TurnDecision:
    """Where a turn goes. `undecided` counts turns in a row without a decision of their own, this one
    included; `previous` is an adapter's name or `base`, empty for the first turn."""

    conclusion: Conclusion
    classification: Classification
    progress: Progress = "initial"
    previous: str = ""
    undecided: int = 0
    alone: bool = True


def continued(previous: Previous | None, now: TurnResult, sticky: bool = False) -> TurnDecision:
    """Where a turn goes that follows `previous`.

    A decision of its own counts. Without one the previous adapter stays, through MOST_UNDECIDED such turns
    in a row; after them the conversation is over, and this turn is the first of another. Where it is
    `sticky` a previous adapter stays whatever the turn is about.
    """
    own = now.classification.conclusion
    if previous is None:
        return TurnDecision(own, now.classification, undecided=0 if now.decided else 1, alone=now.alone)
    before = previous.conclusion.adapter
    pinned = sticky and bool(before)
    if now.decided and not pinned:
        progress: Progress = "kept" if own.adapter == before else "switched"
        return TurnDecision(own, now.classification, progress, previous.name, alone=now.alone)
    undecided = previous.undecided + 1
    if undecided > MOST_UNDECIDED and not pinned:
        return TurnDecision(own, now.classification, undecided=1, alone=now.alone)
    conclusion = previous.conclusion if before else own
    return TurnDecision(conclusion, now.classification, "kept", previous.name, undecided, alone=False)


async def choose(
    texts: RoutingInput,
    classify: Classify,
    mode: Continuity,
    remembered: Previous | None = None,
    fresh: bool = False,
) -> TurnDecision:
    """Where the newest turn goes. `remembered` is the last decision of a named conversation;
    with it the chat's own earlier turns are not looked at."""
    newest, *earlier = texts.latest
    if mode == "none":
        return replace(
            continued(None, await classify_turn(newest, texts, classify, False)), progress="", undecided=0
        )
    if fresh or not (earlier or remembered):
        return continued(None, await classify_turn(newest, texts, classify, False))
    sticky = mode == "sticky"
    now = await classify_turn(newest, texts, classify, True)
    previous = remembered
    if previous is None:
        previous = await _first(texts, classify) if sticky else await _latest(earlier, texts, classify)
    chosen = continued(previous, now, sticky)
    if chosen.progress == "initial" and not now.decided and newest.answer:
        found = await classify(newest.with_answer)
        if found.conclusion.adapter:
            return TurnDecision(found.conclusion, found, alone=False)
    return chosen


async def classify_turn(
    turn: UserTurn, texts: RoutingInput, classify: Classify, follows: bool, again: bool = False
) -> TurnResult:
    """The result of a turn by itself; `follows`: there are turns before it.

    A system prompt that names an adapter counts where it does so together with the turn, too; where the turn
    decides nothing, the system prompt's best guess counts in the same way.
    """
    system = (
        await classify(texts.system, again=True)
        if texts.system
        else Classification(Conclusion("", Reason.ABSTAINED))
    )
    if named := system.conclusion.adapter:
        both = await classify(texts.under_system(turn), again)
        if both.conclusion.adapter == named:
            return TurnResult(both, decided=True, alone=False)
    found = await _by_its_text(turn, classify, again)
    if found.decided:
        return found
    if not named and system.leaning.confidence >= GUESS:
        both = await classify(texts.under_system(turn), again)
        if both.conclusion.adapter == system.leaning.guess:
            return TurnResult(both, decided=True, alone=False)
    return (await _by_its_place(turn, found.classification, classify, again) if follows else None) or found


async def _by_its_text(turn: UserTurn, classify: Classify, again: bool) -> TurnResult:
    """Instructions between the ends of a long text count first. A text that decides nothing is read again
    without sentences that prescribe the form of the answer."""
    if instruction := turn.instruction:
        found = await classify(instruction, again)
        if found.conclusion.adapter:
            return TurnResult(found, decided=True, alone=False)
    found = await classify(turn.text, again)
    if found.conclusion.adapter:
        return TurnResult(found, decided=True)
    if request := turn.without_form:
        other = await classify(request, again)
        if other.conclusion.adapter:
            return TurnResult(other, decided=True, alone=False)
    none = found.leaning.none
    return TurnResult(found, decided=none >= SURE_NONE or (none >= LIKELY_NONE and turn.stands_alone))


async def _by_its_place(
    turn: UserTurn, classification: Classification, classify: Classify, again: bool
) -> TurnResult | None:
    """A turn that follows others is read without its opening, such as "Other question:". Then its best guess
    counts if it is confirmed together with the answer before."""
    if rest := turn.without_opening:
        other = await classify(rest, again)
        if other.conclusion.adapter:
            return TurnResult(other, decided=True, alone=False)
    if turn.answer and classification.leaning.confidence >= GUESS:
        other = await classify(turn.with_answer, again)
        if other.conclusion.adapter == classification.leaning.guess:
            return TurnResult(other, decided=True, alone=False)
    return None


async def _latest(earlier: Sequence[UserTurn], texts: RoutingInput, classify: Classify) -> Previous | None:
    """The latest decision of the turns before, which come newest first."""
    for undecided, turn in enumerate(earlier):
        found = await classify_turn(turn, texts, classify, turn.follows, again=True)
        if found.decided:
            return Previous(found.classification.conclusion, undecided)
    return None


async def _first(texts: RoutingInput, classify: Classify) -> Previous | None:
    """The first decision for an adapter."""
    for turn in texts.earliest:
        found = await classify_turn(turn, texts, classify, turn.follows, again=True)
        if found.classification.conclusion.adapter:
            return Previous(found.classification.conclusion)
    return None


Value = TypeVar("Value")


class RecentByTenant(Generic[Value]):
    """Values of tenants by key, the latest used ones, for `seconds` at most.

    At most `each` of a tenant and `most` of all. Where that is exceeded the tenant with the most loses its
    oldest, so that no tenant can push out the few of another.
    """

    def __init__(
        self,
        seconds: float,
        most: int = MOST_REMEMBERED,
        each: int = MOST_OF_A_TENANT,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._seconds, self._most, self._each, self._now = seconds, most, each, now
        self._of: dict[str, OrderedDict[Hashable, tuple[Value, float]]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def get(self, tenant: str, key: Hashable) -> Value | None:
        """The value; None where there is none, or an old one."""
        mine = self._of.get(tenant)
        found = None if mine is None else mine.get(key)
        if mine is None or found is None:
            return None
        if self._now() - found[1] > self._seconds:
            self.drop(tenant, key)
            return None
        mine.move_to_end(key)
        return found[0]

    def put(self, tenant: str, key: Hashable, value: Value) -> None:
        """Keep it."""
        mine = self._of.setdefault(tenant, OrderedDict())
        self._count += key not in mine
        mine[key] = value, self._now()
        mine.move_to_end(key)
        if len(mine) > self._each:
            self._forget_oldest(tenant)
        elif self._count > self._most:
            self._forget_oldest(max(self._of, key=lambda one: len(self._of[one])))

    def drop(self, tenant: str, key: Hashable) -> None:
        """Keep it no longer."""
        mine = self._of.get(tenant)
        if mine is not None and mine.pop(key, None) is not None:
            self._gone(tenant, mine)

    def clear(self) -> None:
        """Keep nothing."""
        self._of.clear()
        self._count = 0

    def _forget_oldest(self, tenant: str) -> None:
        mine = self._of[tenant]
        mine.popitem(last=False)
        self._gone(tenant, mine)

    def _gone(self, tenant: str, mine: OrderedDict[Hashable, tuple[Value, float]]) -> None:
        self._count -= 1
        if not mine:
            del self._of[tenant]
