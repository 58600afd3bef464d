"""A bandit's weights as the audit trail keeps them: one entry for each epoch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from router.experiments.model import AuditEntry, Phase

ACT = "reweight"


def detail_of(
    phase: Phase, epoch: int, weights: Mapping[str, float], units: Mapping[str, int]
) -> dict[str, object]:
    """The detail of an entry; `units` are those that the weights rest on."""
    return {"phase": phase.number, "epoch": epoch, "weights": dict(weights), "units": dict(units)}


def kept(trail: Iterable[AuditEntry], phase: Phase, epoch: int) -> dict[str, float] | None:
    """Weights that were made for an epoch; the first to write them won."""
    return next((found for number, found in _entries(trail, phase) if number == epoch), None)


def latest(trail: Iterable[AuditEntry], phase: Phase) -> dict[str, float]:
    """Weights of the last epoch that has some; empty before the second."""
    return max(_entries(trail, phase), key=lambda entry: entry[0], default=(0, {}))[1]


def _entries(trail: Iterable[AuditEntry], phase: Phase) -> Iterator[tuple[int, dict[str, float]]]:
    """Epochs of a phase with weights for just its arms, as they were written."""
    arms = {arm.name for arm in phase.spec.arms}
    for entry in trail:
        detail = entry.detail
        epoch, said = detail.get("epoch"), detail.get("weights")
        if entry.act != ACT or detail.get("phase") != phase.number or not isinstance(epoch, int | float):
            continue
        if isinstance(said, Mapping) and set(said) == arms:
            yield int(epoch), {str(arm): float(weight) for arm, weight in said.items()}
