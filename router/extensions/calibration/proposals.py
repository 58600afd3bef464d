"""From corrections to examples: what each adapter could learn, what it is tested on, and what is left out.

Texts that are nearly the same as what they are tested on are left out.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from router.corrections.store import Correction
from router.types import AdapterProfile

ALIKE = 0.7  # share of the words of two texts that stand in both (Jaccard)
# Scripts without spaces between words are compared letter by letter.
_WORD = re.compile(
    r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]|[^\W_\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]+"
)


def normal(text: str) -> str:
    """The text without what makes no difference: white space."""
    return " ".join(text.split())


class NearDuplicates:
    """Known texts, to ask which of them is much like another text."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._texts: list[str] = []
        self._sizes: list[int] = []
        self._places: defaultdict[str, list[int]] = defaultdict(list)
        for text in texts:
            self.add(text)

    def add(self, text: str) -> None:
        """Know it, too."""
        words = _words(text)
        for word in words:
            self._places[word].append(len(self._texts))
        self._texts.append(text)
        self._sizes.append(len(words))

    def like(self, text: str) -> str | None:
        """The first known text that is nearly the same; None if there is none."""
        words = _words(text)
        shared = Counter(place for word in words for place in self._places.get(word, ()))
        alike = (
            place
            for place, count in shared.items()
            if count >= ALIKE * (len(words) + self._sizes[place] - count)
        )
        place = min(alike, default=None)
        return None if place is None else self._texts[place]


def _words(text: str) -> frozenset[str]:
    """Words, or the text itself where it has none."""
    return frozenset(_WORD.findall(text.lower())) or frozenset({normal(text)})


NO_TEXT = "kept without a text"
UNKNOWN = "for an adapter that is not here"
TWICE = "the same request again"
CONFLICT = "the same request is said to be for another adapter, too"
KNOWN = "an example already"
HELD_OUT = "nearly the same as a held-out request"
LIKE_ANOTHER = "nearly the same as another correction"
FULL = "the adapter has as many examples as it may"


@dataclass(frozen=True, slots=True)
class LabelledRequest:
    """A request and the adapter that it is for, "" the base; `wrong` answered it and should not have."""

    text: str
    label: str
    wrong: str = ""


@dataclass(frozen=True, slots=True)
class Addition:
    """What an adapter's manifest would get."""

    examples: tuple[str, ...] = ()
    negative_examples: tuple[str, ...] = ()

    def to(self, profile: AdapterProfile) -> AdapterProfile:
        """The adapter as it would be."""
        return replace(
            profile,
            examples=(*profile.examples, *self.examples),
            negative_examples=(*profile.negative_examples, *self.negative_examples),
        )


@dataclass(frozen=True, slots=True)
class Proposals:
    """`additions` by adapter, of the `requests`; `held_back` are for testing; `left_out` by reason."""

    requests: tuple[LabelledRequest, ...] = ()
    held_back: tuple[LabelledRequest, ...] = ()
    additions: Mapping[str, Addition] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)


def propose(
    corrections: Iterable[Correction],
    profiles: Sequence[AdapterProfile],
    held_out: Iterable[str],
    hold_back: float,
    most_examples: int,
) -> Proposals:
    """Each request once: the share `hold_back` of them for testing, drawn by a hash, the rest to learn from.

    Nothing is learned from that is nearly the same as what it is tested on: as a text in `held_out`, or as
    one that was held back.
    """
    left_out: Counter[str] = Counter()
    requests = _distinct(corrections, profiles, left_out)
    held_back = [labelled for labelled in requests if _drawn(labelled.text) < hold_back]
    away, kept = NearDuplicates([*held_out, *(labelled.text for labelled in held_back)]), []
    taken: dict[str, NearDuplicates] = {}
    for labelled in requests:
        if _drawn(labelled.text) < hold_back:
            continue
        others = taken.setdefault(labelled.label, NearDuplicates())
        if away.like(labelled.text) is not None:
            left_out[HELD_OUT] += 1
        elif others.like(labelled.text) is not None:
            left_out[LIKE_ANOTHER] += 1
        else:
            others.add(labelled.text)
            kept.append(labelled)
    additions = _additions(kept, profiles, most_examples, left_out)
    return Proposals(tuple(kept), tuple(held_back), additions, dict(left_out))


def _distinct(
    corrections: Iterable[Correction], profiles: Sequence[AdapterProfile], left_out: Counter[str]
) -> list[LabelledRequest]:
    names = {profile.name for profile in profiles}
    examples = {profile.name: set(map(normal, profile.examples)) for profile in profiles}
    found: dict[str, LabelledRequest] = {}
    conflicts: set[str] = set()
    for one in corrections:
        text = normal(one.text)
        if not text or not _can_be_written(one.text):
            left_out[NO_TEXT] += 1
        elif one.label and one.label not in names:
            left_out[UNKNOWN] += 1
        elif one.label and text in examples[one.label]:
            left_out[KNOWN] += 1
        elif text in found:
            conflict = found[text].label != one.label
            left_out[CONFLICT if conflict else TWICE] += 1
            conflicts |= {text} if conflict else set()
        else:
            wrong = one.chosen if one.wrong and one.chosen in names else None
            found[text] = LabelledRequest(one.text, one.label, wrong or "")
    for text in conflicts:
        del found[text]
        left_out[CONFLICT] += 1
    return list(found.values())


def _additions(
    requests: Sequence[LabelledRequest], profiles: Sequence[AdapterProfile], most: int, left_out: Counter[str]
) -> dict[str, Addition]:
    found: dict[str, Addition] = {}
    for profile in profiles:
        known = set(map(normal, profile.negative_examples))
        examples = [labelled.text for labelled in requests if labelled.label == profile.name]
        negative = [x.text for x in requests if x.wrong == profile.name and normal(x.text) not in known]
        room = most - len(profile.examples), most - len(profile.negative_examples)
        if over := max(0, len(examples) - room[0]) + max(0, len(negative) - room[1]):
            left_out[FULL] += over
        addition = Addition(tuple(examples[: max(0, room[0])]), tuple(negative[: max(0, room[1])]))
        if addition != Addition():
            found[profile.name] = addition
    return found


def _can_be_written(text: str) -> bool:
    """Half a character, which JSON may hold, can stand in no manifest."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _drawn(text: str) -> float:
    """A number in [0, 1) that the text alone decides."""
    digest = hashlib.sha256(f"held back {normal(text)}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
