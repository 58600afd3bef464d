"""What a mode allows to be said: verdicts of shadow arms and bandits go no further than their evidence."""

from __future__ import annotations

from dataclasses import replace

from router.experiments.model import Mode
from router.experiments.report.model import ArmReport, Pairs, Ruling
from router.experiments.report.source import Source
from router.experiments.verdict import Decision

NOT_STARTED = Ruling(Decision.UNDECIDED.value, "not-started", "nobody is assigned before the start")
BANDIT = "a bandit moves traffic by itself and ends in no promotion; run a split to confirm. So far: {}"


def allowed(source: Source, said: Ruling) -> Ruling:
    """A ruling as the mode lets it stand."""
    if source.spec.mode is Mode.BANDIT and said.decision == Decision.PROMOTE:
        return Ruling(Decision.UNDECIDED.value, "bandit", BANDIT.format(said.text))
    return said


def of_shadow(arm: ArmReport, pairs: Pairs) -> ArmReport:
    """A shadow arm's report: its pairs in place of a verdict, or beside the one that it is invalid."""
    said = Ruling(Decision.UNDECIDED.value, "shadow", told(pairs))
    if arm.verdict.decision == Decision.INVALID:
        return replace(arm, blocked=said, pairs=pairs)
    return replace(arm, verdict=said, pairs=pairs)


def overall(source: Source, judged: Ruling, arms: tuple[ArmReport, ...]) -> Ruling:
    """The experiment's ruling."""
    if source.spec.mode is Mode.SHADOW and judged.decision != Decision.INVALID:
        text = "; ".join(f"{arm.arm}: {arm.verdict.text}" for arm in arms)
        return Ruling(Decision.UNDECIDED.value, "shadow", text)
    return allowed(source, judged)


def told(pairs: Pairs) -> str:
    """Pairs in words."""
    counted = f"{pairs.wins:,} won, {pairs.losses:,} lost, {pairs.ties:,} tied"
    return (
        f"pairs: {counted}; share of wins {pairs.share:.1%} in [{pairs.low:.1%}, {pairs.high:.1%}],"
        f" p = {pairs.p:.2g}; operational, nobody saw these answers"
    )
