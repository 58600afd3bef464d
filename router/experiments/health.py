"""What must be sound before any verdict: checks of the pipeline, not of the arms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from router.experiments.stats import Maturity, Missing, SampleRatio

CROSSED = 0.01


@dataclass(frozen=True, slots=True)
class Fault:
    """A check that failed: its rule, and what it found with the numbers."""

    rule: str
    text: str


@dataclass(frozen=True, slots=True)
class Health:
    """Results of the checks. `missing` is by arm, each against control.

    `crossed` is the share of units that were shown more than one arm; `mixed` names what changed under
    a running phase (adapter, base or router digest of an arm). `triggered`, of router experiments, is the
    sample ratio among the units for which the routers differed.
    """

    sample_ratio: SampleRatio
    maturity: Maturity
    missing: Mapping[str, Missing] = field(default_factory=dict)
    crossed: float = 0.0
    mixed: tuple[str, ...] = ()
    triggered: SampleRatio | None = None

    def faults(self) -> list[Fault]:
        """Everything that makes verdicts invalid; empty if sound."""
        return list(self._faults())

    def _faults(self) -> Iterator[Fault]:
        for rule, ratio in (("sample-ratio", self.sample_ratio), ("triggered-ratio", self.triggered)):
            if ratio is not None and ratio.alarm:
                wanted = ", ".join(f"{n:.0f}" for n in ratio.expected)
                got = ", ".join(map(str, ratio.counts))
                level = f"p = {ratio.p:.2g}, alarm at {ratio.alpha:g}"
                yield Fault(rule, f"units by arm are {got}, expected were {wanted} ({level})")
        for arm, found in self.missing.items():
            if found.alarm:
                text = (
                    f"{found.treatment:.1%} of outcomes are missing in {arm}, {found.control:.1%} in control"
                )
                yield Fault("missing-outcomes", text)
        if self.crossed > CROSSED:
            yield Fault("crossed-units", f"{self.crossed:.1%} of units were shown more than one arm")
        if self.mixed:
            yield Fault("mixed-digests", f"changed while the phase ran: {', '.join(self.mixed)}")
