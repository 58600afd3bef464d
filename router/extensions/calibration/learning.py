"""Which additions do held-out requests no harm: tried adapter by adapter, and kept or not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from router.extensions.calibration.evaluation import Decided
from router.extensions.calibration.proposals import Addition
from router.extensions.calibration.rows import DataRow
from router.types import AdapterProfile

SLACK = 100
Judge = Callable[[Sequence[AdapterProfile]], Sequence[Decided]]
"""What becomes of the requests, in their order, once classifiers have learned these adapters."""


@dataclass(frozen=True, slots=True)
class Score:
    """Of so many requests: `right` went where they should, the base included; `wrong` to a wrong adapter;
    `forced`: of those for an adapter, right if the base were no choice."""

    requests: int
    right: int
    wrong: int
    routed: int
    meant: int
    forced: int

    def harmed_by(self, other: Score) -> bool:
        """Whether fewer are right there, or more wrong, by more than one request in SLACK: chance alone does
        that with any change of the classifiers."""
        slack = self.requests // SLACK
        return other.right < self.right - slack or other.wrong > self.wrong + slack


def score_of(rows: Sequence[DataRow], decided: Sequence[Decided]) -> Score:
    """Count them."""
    pairs = list(zip(rows, decided, strict=True))
    routed = [(row, one) for row, one in pairs if one.routed]
    meant = [(row, one) for row, one in pairs if row.label]
    return Score(
        requests=len(pairs),
        right=sum(one.routed == row.label for row, one in pairs),
        wrong=sum(one.routed != row.label for row, one in routed),
        routed=len(routed),
        meant=len(meant),
        forced=sum(one.forced == row.label for row, one in meant),
    )


@dataclass(frozen=True, slots=True)
class Tried:
    """An adapter's addition, what held-out requests did before it and with it, and whether it is kept."""

    adapter: str
    addition: Addition
    before: Score
    after: Score
    kept: bool


@dataclass(frozen=True, slots=True)
class Learned:
    """`before` and `after` are of all requests, held-out ones first; `kept` the additions by adapter."""

    before: tuple[Decided, ...]
    after: tuple[Decided, ...]
    tried: tuple[Tried, ...]
    kept: Mapping[str, Addition]


def learn(
    judge: Judge,
    profiles: Sequence[AdapterProfile],
    additions: Mapping[str, Addition],
    held_out: Sequence[DataRow],
    say: Callable[[str], None] = lambda text: None,
) -> Learned:
    """Greedy, the adapter with most to learn first: what makes a held-out request wrong that was not, on
    balance, is left out. `held_out` are the first of the requests that `judge` judges."""
    count = len(held_out)
    say("as it is")
    before = now = tuple(judge(profiles))
    kept: dict[str, Addition] = {}
    tried: list[Tried] = []
    for name in sorted(additions, key=lambda name: (-_size(additions[name]), name)):
        say(f"with what {name} would learn")
        wanted = {**kept, name: additions[name]}
        then = tuple(judge(taught(profiles, wanted)))
        scores = score_of(held_out, now[:count]), score_of(held_out, then[:count])
        good = not scores[0].harmed_by(scores[1])
        tried.append(Tried(name, additions[name], *scores, good))
        if good:
            kept, now = wanted, then
    return Learned(before, now, tuple(tried), kept)


def taught(
    profiles: Sequence[AdapterProfile], additions: Mapping[str, Addition]
) -> tuple[AdapterProfile, ...]:
    """The adapters as they would be."""
    return tuple(additions[p.name].to(p) if p.name in additions else p for p in profiles)


def _size(addition: Addition) -> int:
    return len(addition.examples) + len(addition.negative_examples)
