"""How many slices a switchback needs, by how much neighbouring slices differ where nothing is compared.

That spread is read from what the last experiment on the route recorded over time, or given. A split's control
had only a part of the requests, so its slices differ somewhat more than those of a switchback.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from router.errors import FieldViolation, InvalidRequest
from router.experiments.model import WORD_FORM, Mode, SizeAnswer, SizeQuestion, is_word
from router.experiments.report.source import duration
from router.experiments.sizing import VisibleHistory
from router.experiments.slices import FINAL_SHARE, LONGEST, SHORTEST
from router.experiments.stats.permutation import effect_for, pairs_for, pairs_needed

DAY = 86_400.0
PLANNED = 48
ENOUGH_PAIRS, ENOUGH_ANSWERS = 6, 5  # pairs of slices with so many answers in each


@dataclass(frozen=True, slots=True)
class SlicesBefore:
    """The value of a metric, and the deviation of the difference of two neighbouring slices."""

    place: str
    value: float
    deviation: float
    pairs: int


def slice_size_of(question: SizeQuestion, history: VisibleHistory | None = None) -> SizeAnswer:
    """Slices of all arms until the verdict; `days` are of one server. Raises InvalidRequest, StoreDown."""
    length = question.slice_length or 3600.0
    if found := list(_problems(question, length)):
        raise InvalidRequest(found)
    baseline, deviation, notes = question.baseline, question.deviation, list[str]()
    if (deviation is None or baseline is None) and history is not None:
        before = slices_before(history, question, length)
        if before is not None:
            baseline = before.value if baseline is None else baseline
            deviation = before.deviation if deviation is None else deviation
            notes.append(
                f"{question.metric} of {before.place}: {before.value:.4g}; neighbouring slices of"
                f" {duration(length)} differ by {before.deviation:.4g} (standard deviation of"
                f" {before.pairs} pairs)"
            )
    if deviation is None:
        text = (
            f"is needed: no experiment on this route recorded {question.metric} over {ENOUGH_PAIRS} pairs of"
            " slices. How much do neighbouring slices differ?"
        )
        raise InvalidRequest([FieldViolation("deviation", text)])
    return _answer(question, length, math.nan if baseline is None else baseline, deviation, notes)


def _answer(
    question: SizeQuestion, length: float, baseline: float, deviation: float, notes: list[str]
) -> SizeAnswer:
    arms = max(2, len(question.weights))
    alpha, power = FINAL_SHARE * question.alpha / (arms - 1), question.power
    effect, least = question.effect, pairs_needed(alpha)
    if effect is None:
        slices = _budget(question, length)
        found = effect_for(slices // arms, deviation, alpha, power)
        if math.isinf(found):
            notes.append(f"{slices} slices find no effect of any size: {arms * least} are the fewest")
            effect = None
        else:
            effect = found if question.higher_is_better else -found
        pairs = slices // arms
    else:
        pairs = pairs_for(abs(effect), deviation, alpha, power)
    slices = arms * pairs
    days = slices * length / DAY
    return SizeAnswer(
        baseline,
        deviation,
        effect,
        fixed_units=slices,
        units=slices,
        half_units=slices,
        least_units=arms * least,
        factor=1.0,
        days=days,
        units_per_day=DAY / length,
        notes=tuple(notes),
    )


def _budget(question: SizeQuestion, length: float) -> int:
    found = [] if question.units is None else [question.units]
    if question.days is not None:
        found.append(math.floor(question.days * DAY / length))
    return min(found, default=PLANNED)


def _problems(question: SizeQuestion, length: float) -> Iterator[FieldViolation]:
    if not is_word(question.metric):
        yield FieldViolation("metric.name", f"must be {WORD_FORM}")
    if not SHORTEST <= length <= LONGEST:
        yield FieldViolation("slice_length", f"must be between a second and a week, got {length:g} s")
    if not 0 < question.alpha <= 0.2:
        yield FieldViolation("alpha", f"must be above 0 and at most 0.2, got {question.alpha:g}")
    elif not question.alpha < question.power <= 0.999:
        text = f"must be above alpha, {question.alpha:g}, and at most 0.999, got {question.power:g}"
        yield FieldViolation("power", text)
    if question.effect is not None and not (question.effect and math.isfinite(question.effect)):
        yield FieldViolation("effect", f"must be a finite number other than 0, got {question.effect:g}")
    if question.deviation is not None and not (question.deviation >= 0 and math.isfinite(question.deviation)):
        yield FieldViolation(
            "deviation", f"must be a finite number of 0 or above, got {question.deviation:g}"
        )
    for name in ("days", "units"):
        if (value := getattr(question, name)) is not None and value <= 0:
            yield FieldViolation(name, f"must be above 0, got {value:g}")


def slices_before(history: VisibleHistory, question: SizeQuestion, length: float) -> SlicesBefore | None:
    """From the last phase on the route that recorded the metric long enough; None without one."""
    found = [
        (experiment, phase)
        for experiment in history.list()
        for phase in experiment.phases
        if question.route in ("", phase.spec.route) and phase.spec.mode is not Mode.HOLDOUT
    ]
    for experiment, phase in sorted(found, key=lambda pair: pair[1].started, reverse=True):
        if question.metric not in {metric.name for metric in phase.spec.metrics}:
            continue
        rows = history.values_over_time(experiment.name, phase.number, question.metric)
        if phase.spec.mode is not Mode.SWITCHBACK:
            rows = [row for row in rows if row[0] == phase.spec.control]
        place = f"{experiment.resource}, phase {phase.number}"
        if before := _before(place, rows, phase.spec.control, phase.started, length):
            return before
    return None


def _before(
    place: str, rows: Sequence[tuple[str, float, float]], control: str, started: float, length: float
) -> SlicesBefore | None:
    """Values around their arm's mean by slice, and how much the slices of a pair differ."""
    means = {arm: _mean(value for a, _, value in rows if a == arm) for arm in {row[0] for row in rows}}
    slices: dict[int, list[float]] = {}
    for arm, time, value in rows:
        slices.setdefault(math.floor((time - started) / length), []).append(value - means[arm])
    whole = {number: _mean(each) for number, each in slices.items() if len(each) >= ENOUGH_ANSWERS}
    pairs = [whole[n + 1] - whole[n] for n in whole if n % 2 == 0 and n + 1 in whole]
    if len(pairs) < ENOUGH_PAIRS or control not in means:
        return None
    return SlicesBefore(place, means[control], math.sqrt(_mean(d * d for d in pairs)), len(pairs))


def _mean(values: Iterable[float]) -> float:
    each = list(values)
    return math.fsum(each) / len(each)
