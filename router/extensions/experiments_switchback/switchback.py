"""The mode `switchback`: an arm's verdict from pairs of slices.

In each block of a server the slices of control and of an arm are a pair, and a fair coin said which was
first. So the differences of their values have random signs where the arms are equal, whatever the load did:
`stats.permutation.sign_flips`. That test has its size: the verdict comes when the planned pairs are over,
from just these pairs, and later looks do not change it.

Harm does not wait for that. A sequence of signs that is valid at every look (`stats.checks.paired`) has the
fifth of alpha that the test at the end leaves: it stops an arm that is worse in each of eight pairs, or in
nearly all of some more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from router.experiments.model import MetricSpec
from router.experiments.modes import ExperimentMode
from router.experiments.report.answers import AnswerReader, Fraction, UnitAnswers
from router.experiments.report.model import ArmReport, CarryOver, MetricReport, Ruling, SlicePair, Switchback
from router.experiments.report.source import PhaseEvidence
from router.experiments.slices import FINAL_SHARE, SECOND, WASH_OUT, SlicePart
from router.experiments.stats.checks import paired
from router.experiments.stats.compare import holm
from router.experiments.stats.permutation import Shift, sign_flips
from router.experiments.store.store import ExperimentStore
from router.experiments.verdict import VerdictDecision, ruling_of_shown

METHOD = "sign-flip"
CARRIED = 0.01
"""From this p on the report says that slices are too short."""


@dataclass
class SliceSums:
    """A slice of a server without its wash-out. `parts` by metric: first half, second half."""

    arm: str
    parts: dict[str, list[Fraction]] = field(default_factory=dict)
    responses: int = 0

    def add(self, part: str, unit: UnitAnswers) -> None:
        """The answers of a half."""
        self.responses += unit.responses
        for metric, found in unit.metrics.items():
            halves = self.parts.setdefault(metric, [Fraction(), Fraction()])
            halves[part == SECOND] = halves[part == SECOND].plus(found)

    def value(self, metric: str, part: int | None = None) -> float | None:
        """Of the whole slice, or of one half."""
        halves = self.parts.get(metric, [Fraction(), Fraction()])
        return (halves[0].plus(halves[1]) if part is None else halves[part]).value


Slices = Mapping[tuple[str, int], SliceSums]  # by server and number


def slices_of(found: Iterable[UnitAnswers]) -> Slices:
    """The slices that units are parts of."""
    slices: dict[tuple[str, int], SliceSums] = {}
    for unit in found:
        part = SlicePart.parsed(unit.unit)
        if part is not None and part.part != WASH_OUT:
            slices.setdefault((part.server, part.number), SliceSums(unit.arm)).add(part.part, unit)
    return slices


@dataclass(frozen=True, slots=True)
class SlicesOfPair:
    """The slices of control and of one arm in a block; `start` in unix seconds."""

    server: str
    block: int
    start: float
    control: SliceSums
    treatment: SliceSums

    def difference(self, metric: str, part: int | None = None, share: float = 0.0) -> float | None:
        """The arm's value minus (1 + share) times control's; None where one of them has no value."""
        values = self.control.value(metric, part), self.treatment.value(metric, part)
        return None if values[0] is None or values[1] is None else values[1] - (1 + share) * values[0]


class SwitchbackMode(ExperimentMode):
    """Judges the switchbacks of a server. Which arm a slice has is computed where requests are assigned."""

    def __init__(self, store: ExperimentStore) -> None:
        self._reader = AnswerReader(store)

    def judge(self, source: PhaseEvidence) -> tuple[ArmReport, ...]:
        """Every arm but control, from the slices that are over."""
        settled = source.now - source.spec.closing
        name, number = source.experiment.name, source.phase.number
        return judged(source, slices_of(self._reader.read(name, number, source.spec.metrics, settled)))


def judged(source: PhaseEvidence, slices: Slices) -> tuple[ArmReport, ...]:
    """Every arm but control."""
    spec, arms = source.spec, source.design.treatments
    planned = spec.planned_slices // len(spec.arms)
    pairs = {arm: pairs_of(source, slices, arm) for arm in arms}
    level = FINAL_SHARE * spec.alpha
    found = {arm: _measured(pairs[arm][:planned], spec.primary, level) for arm in arms}
    lines = {arm: _shift(pairs[arm][:planned], spec.primary, level, offset=spec.margin) for arm in arms}
    adjusted = holm({arm: line.p for arm, line in lines.items()})
    return tuple(
        _arm(source, arm, pairs[arm], found[arm], lines[arm], adjusted[arm], planned) for arm in arms
    )


def pairs_of(source: PhaseEvidence, slices: Slices, arm: str) -> list[SlicesOfPair]:
    """Pairs that nothing changes any more, in the order of time and then of servers. Those without a value of
    the primary metric in both slices are left out: a server that did not serve tells of neither arm."""
    spec, many = source.spec, len(source.spec.arms)
    end = min(source.now - spec.closing, source.phase.ended or source.now)
    by_block: dict[tuple[int, str], dict[str, SliceSums]] = {}
    for (server, number), sums in slices.items():
        by_block.setdefault((number // many, server), {})[sums.arm] = sums
    found = []
    for (block, server), of in sorted(by_block.items()):
        start = source.phase.started + block * many * spec.slice_length
        control, treatment = of.get(spec.control), of.get(arm)
        if start + many * spec.slice_length > end or control is None or treatment is None:
            continue
        pair = SlicesOfPair(server, block, start, control, treatment)
        if pair.difference(spec.primary.name) is not None:
            found.append(pair)
    return found


def _arm(
    source: PhaseEvidence,
    arm: str,
    every: Sequence[SlicesOfPair],
    primary: MetricReport | None,
    line: Shift,
    p: float,
    planned: int,
) -> ArmReport:
    spec, pairs = source.spec, every[:planned]
    complete = len(every) >= planned
    rails = tuple(_guarded(pairs, rail, spec.alpha, complete) for rail in spec.guardrails)
    shown = tuple(rail for rail in rails if rail is not None)
    corrected = spec.alpha / max(1, len(spec.secondary) * len(source.design.treatments))
    beside = (_measured(pairs, metric, corrected) for metric in spec.secondary)
    so_far = len(spec.arms) * min(len(every), planned)
    return ArmReport(
        arm,
        _ruling(source, pairs, primary, line, p, rails, complete, so_far),
        primary,
        p,
        shown,
        secondary=tuple(one for one in beside if one is not None),
        switchback=Switchback(
            planned * len(spec.arms),
            so_far,
            tuple(_pair(pair, spec.primary.name) for pair in pairs),
            carry_over(pairs, spec.primary),
            complete,
        ),
    )


def _pair(pair: SlicesOfPair, metric: str) -> SlicePair:
    values = (pair.control.value(metric) or 0.0, pair.treatment.value(metric) or 0.0)
    counts = (pair.control.responses, pair.treatment.responses)
    return SlicePair(pair.server, pair.block, pair.start, *values, *counts)


def _ruling(
    source: PhaseEvidence,
    pairs: Sequence[SlicesOfPair],
    primary: MetricReport | None,
    line: Shift,
    p: float,
    rails: Sequence[MetricReport | None],
    complete: bool,
    so_far: int,
) -> Ruling:
    """The first rule that applies, in the order of `verdict`."""
    spec = source.spec
    for rail in rails:
        if rail is not None and rail.state == "beyond":
            return Ruling(VerdictDecision.HARM, "guardrail", f"guardrail {_numbers(rail)}")
    size = f"{so_far} of {spec.planned_slices} planned slices are over"
    if primary is None:
        return Ruling(VerdictDecision.UNDECIDED, "too-few-units", f"{size}, none of them in a whole pair")
    level = FINAL_SHARE * spec.alpha
    early = (1 - FINAL_SHARE) * spec.alpha / len(source.design.treatments)
    worse, counted = _worse(pairs, spec.primary, spec.margin, 0.0, early)
    if worse:
        text = f"{_numbers(primary)}; worse in {counted[0]} of {sum(counted)} pairs"
        return Ruling(VerdictDecision.HARM, "primary-worse", text)
    if not complete:
        text = f"{size}, and the verdict comes after the last; so far {_numbers(primary)}"
        return Ruling(VerdictDecision.UNDECIDED, "planned-size", text)
    words = f"{_numbers(primary)}, p = {p:.2g} with Holm over arms, level {level:g}"
    if p > level:
        return Ruling(VerdictDecision.UNDECIDED, "primary-open", f"{words}; all planned slices are over")
    open_rails = [rail for rail in rails if rail is None or rail.state != "within"]
    unsure = ["" if rail is None else _numbers(rail) for rail in open_rails]
    return ruling_of_shown(words, line.effect, unsure, spec.margin)


def _numbers(found: MetricReport) -> str:
    control, treatment = found.values
    return (
        f"{found.metric}: {treatment:.4g} against {control:.4g} in {found.units[0]} pairs of slices,"
        f" difference {found.effect:+.4g} in [{found.low:.4g}, {found.high:.4g}]"
    )


def _differences(
    pairs: Iterable[SlicesOfPair], metric: MetricSpec, offset: float = 0.0, share: float = 0.0
) -> list[float]:
    """By how much the arm is better, plus `offset`; with `share` by how much more than such a part of
    control's value."""
    sign = 1.0 if metric.higher_is_better else -1.0
    share = -sign * share
    found = (pair.difference(metric.name, share=share) for pair in pairs)
    return [sign * one + offset for one in found if one is not None]


def _shift(
    pairs: Sequence[SlicesOfPair], metric: MetricSpec, alpha: float, offset: float = 0.0, share: float = 0.0
) -> Shift:
    return sign_flips(_differences(pairs, metric, offset, share), alpha)


def _measured(pairs: Sequence[SlicesOfPair], metric: MetricSpec, alpha: float) -> MetricReport | None:
    """The arm against control; None without a pair that has a value in both slices."""
    usable = [pair for pair in pairs if pair.difference(metric.name) is not None]
    if not usable:
        return None
    found = sign_flips([pair.difference(metric.name) or 0.0 for pair in usable], alpha)
    both = (
        sum(of.value(metric.name) or 0.0 for of in slices) / len(usable)
        for slices in ((p.control for p in usable), (p.treatment for p in usable))
    )
    return MetricReport(
        metric.name,
        (len(usable), len(usable)),
        (next(both), next(both)),
        found.effect,
        found.low,
        found.high,
        found.p,
        METHOD,
        metric.higher_is_better,
        anytime=False,
        cap=metric.cap,
        alpha=alpha,
    )


def _guarded(
    pairs: Sequence[SlicesOfPair], rail: MetricSpec, alpha: float, complete: bool
) -> MetricReport | None:
    """A guardrail: beyond its margin at any look by signs, within or beyond it at the planned size."""
    level = FINAL_SHARE * alpha
    found = _measured(pairs, rail, level)
    if found is None:
        return None
    offset, share = (0.0, rail.margin) if rail.relative else (rail.margin, 0.0)
    line = _shift(pairs, rail, level, offset, share)
    state, p = "open", min(line.above, line.below)
    if _worse(pairs, rail, offset, share, alpha - level)[0]:
        state = "beyond"
    elif complete and line.below <= level:
        state, p = "beyond", line.below
    elif complete and line.above <= level:
        state, p = "within", line.above
    return _as_guardrail(found, rail, state, p)


def _as_guardrail(found: MetricReport, rail: MetricSpec, state: str, p: float) -> MetricReport:
    return replace(found, state=state, p=p, margin=rail.margin, margin_relative=rail.relative)


def _worse(
    pairs: Sequence[SlicesOfPair], metric: MetricSpec, offset: float, share: float, alpha: float
) -> tuple[bool, tuple[int, int]]:
    """Whether the arm is shown to be worse than the line in more than half of the pairs, at any look; pairs
    in which it is worse and better."""
    found = _differences(pairs, metric, offset, share)
    worse, better = sum(one < 0 for one in found), sum(one > 0 for one in found)
    if not worse + better:
        return False, (0, 0)
    # The interval is two-sided, and only one side is asked for.
    signs = paired(worse, better, alpha=min(0.5, 2 * alpha), units=worse + better, share_sum=float(worse))
    return signs.low > 0.5, (worse, better)


def carry_over(pairs: Sequence[SlicesOfPair], metric: MetricSpec) -> CarryOver | None:
    """The effect in first and second halves of slices; None where no pair has both."""
    halves = [
        (first, second)
        for pair in pairs
        if (first := pair.difference(metric.name, 0)) is not None
        and (second := pair.difference(metric.name, 1)) is not None
    ]
    if not halves:
        return None
    first, second = (sum(half) / len(halves) for half in zip(*halves, strict=True))
    p = sign_flips([second - first for first, second in halves]).p
    words = f"the effect is {first:+.4g} in the first halves of slices and {second:+.4g} in the second"
    if p > CARRIED:
        return CarryOver(first, second, p, f"{words}: no carry-over is shown (p = {p:.2g})")
    text = f"{words} (p = {p:.2g}): it takes time to settle, so longer slices would show more of it"
    if abs(second) < abs(first):
        text = f"{words} (p = {p:.2g}): it wears off within a slice, so a roll-out has less of it"
    return CarryOver(first, second, p, text)
