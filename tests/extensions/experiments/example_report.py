"""The report of a made-up experiment of ten days and three arms at 80/10/10, the same at every call.

`python -m tests.extensions.experiments.example_report docs/experiments-report.png` draws the picture of the
documentation, for which chromium must be installed; with a name that ends in .html it writes the page.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from router.extensions.experiments.model import (
    Aggregate,
    ArmSpec,
    AuditEntry,
    Experiment,
    ExperimentPhase,
    Kind,
    Lifecycle,
    MetricSpec,
    SegmentSpec,
    Spec,
)
from router.extensions.experiments.page import page
from router.extensions.experiments.report.build import report
from router.extensions.experiments.report.model import (
    ArmReport,
    MetricReport,
    Report,
    SegmentReport,
)
from router.extensions.experiments.stats.checks import corrected, segmented
from router.extensions.experiments.stats.compare import ArmComparison, SequencePlan, compare
from router.extensions.experiments.stats.moments import ComparedMetric, Moments
from router.extensions.experiments.store.series import TimeBucket
from router.types import AdapterRef
from tests.extensions.experiments.report.sums import DAY, SumsStore

HOUR = 3600.0
STARTED = 1_793_606_400.0  # 2026-11-02 08:00 UTC
DAYS, UNITS_PER_DAY = 10, 3000
ARMS = ("old", "new", "no-adapter")
LANGUAGES = ("en", "de", "fr", "(none)")
SIZE = (1100, 1395)
THUMBS = MetricSpec("thumbs_up", Kind.PROPORTION, covariate=True)
ERROR = MetricSpec("error", Kind.PROPORTION, higher_is_better=False, margin=0.03)
SECONDS = MetricSpec("seconds_to_solution", Kind.MEAN, False, Aggregate.SUM, cap=300.0)
AGAIN = MetricSpec("asked_again", Kind.PROPORTION, higher_is_better=False)
SPEC = Spec(
    hypothesis="version 1.1.0 helps more users than 1.0.0",
    route="medical",
    arms=(
        ArmSpec("old", 0.8, AdapterRef("medical", "1.0.0")),
        ArmSpec("new", 0.1, AdapterRef("medical", "1.1.0")),
        ArmSpec("no-adapter", 0.1),
    ),
    control="old",
    primary=THUMBS,
    guardrails=(ERROR,),
    secondary=(SECONDS, AGAIN),
    segments=(SegmentSpec("language"),),
    planned_units=30_000,
    window=DAY,
)
Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Users:
    """One row a user: hour of the first answer, arm, language, and values by metric, with the past's."""

    hour: NDArray[np.int64]
    arm: NDArray[np.int64]
    language: NDArray[np.int64]
    past: Numbers
    values: dict[str, Numbers]


def users(seed: int = 7) -> Users:
    """More by day than by night, and more of them pleased by the new version."""
    rng = np.random.default_rng(seed)
    count = DAYS * UNITS_PER_DAY
    clock = np.arange(24 * DAYS)
    busy = 1.2 + np.sin((clock + 2) / 24 * 2 * np.pi)
    hour = rng.choice(clock, count, p=busy / busy.sum())
    arm = rng.choice(3, count, p=(0.8, 0.1, 0.1))
    language = rng.choice(4, count, p=(0.55, 0.2, 0.15, 0.1))
    mood = rng.beta(1.2, 1.2, count)
    past = rng.binomial(6, mood) / 6
    pleased = np.clip(mood + np.array([0.0, 0.05, -0.06])[arm], 0, 1)
    seconds = rng.lognormal(3.2, 1.1, count) * np.array([1.0, 0.9, 1.1])[arm]
    values = {
        "thumbs_up": rng.binomial(1, pleased),
        "error": rng.binomial(1, np.array([0.011, 0.012, 0.009])[arm]),
        "seconds_to_solution": np.minimum(seconds, 300.0),
        "asked_again": rng.binomial(1, np.array([0.24, 0.22, 0.28])[arm]),
    }
    floats = {name: of.astype(np.float64) for name, of in values.items()}
    return Users(hour, arm, language, past, floats)


def buckets(made: Users) -> Iterator[TimeBucket]:
    """Sums by hour and arm."""
    for hour in range(24 * DAYS):
        for number, arm in enumerate(ARMS):
            of = (made.hour == hour) & (made.arm == number)
            count = int(of.sum())
            sums = {m.name: Moments.of(*_columns(made, m, of)) for m in (THUMBS, ERROR)}
            answered = dict.fromkeys(made.values, count)
            yield TimeBucket(arm, STARTED + HOUR * hour, HOUR, count, 0, answered, sums)


def _columns(made: Users, metric: MetricSpec, of: NDArray[np.bool_]) -> list[Numbers]:
    own = made.values[metric.name][of]
    return [own, made.past[of]] if metric.covariate else [own]


def compared(
    made: Users, metric: MetricSpec, arm: int, alpha: float, where: NDArray[np.bool_]
) -> MetricReport:
    """An arm against control among the users of `where`."""
    plan = SequencePlan(alpha=alpha, units=SPEC.planned_units)
    control, treatment = (Moments.of(*_columns(made, metric, where & (made.arm == a))) for a in (0, arm))
    return measured(compare(statistic(metric), control, treatment, plan), metric, alpha)


def statistic(metric: MetricSpec) -> ComparedMetric:
    """The metric of the statistics."""
    bounds = None if metric.cap is None else (metric.least, metric.cap)
    return ComparedMetric(metric.name, metric.kind, metric.higher_is_better, metric.covariate, bounds)


def measured(found: ArmComparison, metric: MetricSpec, alpha: float) -> MetricReport:
    """A comparison as plain values."""
    share, waiting = found.relative_interval, found.waiting
    return MetricReport(
        found.metric,
        found.units,
        found.values,
        found.effect,
        *found.interval,
        found.p,
        found.method.value,
        higher_is_better=metric.higher_is_better,
        relative=found.relative if share else None,
        relative_low=share.low if share else None,
        relative_high=share.high if share else None,
        waiting=waiting,
        cap=metric.cap,
        alpha=alpha,
    )


def _by_language(made: Users, arm: int) -> SegmentReport:
    plan, metric = SequencePlan(alpha=SPEC.alpha, units=SPEC.planned_units), statistic(THUMBS)
    own = {name: made.language == number for number, name in enumerate(LANGUAGES)}
    sums = {
        name: tuple(Moments.of(*_columns(made, THUMBS, of & (made.arm == a))) for a in (0, arm))
        for name, of in own.items()
    }
    found = segmented(metric, {name: (one[0], one[1]) for name, one in sums.items()}, plan, many=2)
    alpha = corrected(plan, 2 * len(own)).alpha
    effects = {name: measured(one, THUMBS, alpha) for name, one in found.effects.items()}
    return SegmentReport("language", effects, found.p, found.differ(SPEC.alpha))


def _whole(made: Users, arm: ArmReport) -> ArmReport:
    number, everybody = ARMS.index(arm.arm), np.ones(len(made.arm), bool)
    level = SPEC.alpha / (2 * len(SPEC.secondary))
    return replace(
        arm,
        secondary=tuple(compared(made, one, number, level, everybody) for one in SPEC.secondary),
        segments=(_by_language(made, number),),
    )


def example() -> Report:
    """The report."""
    made = users()
    phase = ExperimentPhase(1, STARTED, "enrolment-salt", "variant-salt", SPEC)
    experiment = Experiment("medical-v2", SPEC, Lifecycle.RUNNING, (phase,), etag="etag-1")
    answers = np.bincount(made.arm)
    store = SumsStore(
        list(buckets(made)),
        experiment,
        responses={arm: int(answers[i] * 2.4) for i, arm in enumerate(ARMS)},
    )
    store.acts = (AuditEntry("medical-v2", STARTED, "10.1.0.7", "start", "ticket 7", {"phase": 1.0}),)
    found = report(store, "medical-v2", now=STARTED + (DAYS + 1) * DAY)
    return replace(found, arms=tuple(_whole(made, arm) for arm in found.arms))


def picture(html: Path, png: Path, size: tuple[int, int] = SIZE) -> None:
    """The page as chromium shows it."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        raise SystemExit("chromium is not installed")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--screenshot={png}"]
    subprocess.run(
        [browser, *flags, f"--window-size={size[0]},{size[1]}", html.as_uri()],
        check=True,
        capture_output=True,
    )


def main(target: Path) -> None:
    """Write the page or its picture."""
    text = page(example())
    if target.suffix == ".html":
        target.write_text(text, encoding="utf-8")
        return
    with tempfile.TemporaryDirectory() as folder:
        html = Path(folder) / "report.html"
        html.write_text(text, encoding="utf-8")
        picture(html, target.absolute())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
