"""What deserves a second look in a plan that may be kept all the same."""

from __future__ import annotations

from collections.abc import Iterator

from router.errors import AdapterNotFound, FailedPrecondition
from router.experiments.kind import Kind
from router.experiments.management.known import Resolve
from router.experiments.model import Mode, Spec

RARE = ("error", "cancelled", "length_stop")


def plan_warnings(spec: Spec) -> Iterator[str]:
    """What the plan itself makes hard to show."""
    for rail in spec.guardrails:
        if rail.name in RARE and rail.kind is not Kind.PROPORTION:
            yield (
                f"guardrail {rail.name} shows nothing while no answer has any, and then nothing is promoted: "
                "as a proportion, the share of units that had one, it is exact from the first unit"
            )
    if spec.mode is Mode.BANDIT and spec.window > spec.epoch:
        yield (
            "units that change their arm between epochs count for their first arm: with a window no longer "
            "than an epoch few outcomes are of another"
        )


def arm_warnings(spec: Spec, resolve: Resolve) -> Iterator[str]:
    """Versions that did not pass the gate, or that have gone since the plan was made."""
    for arm in spec.arms:
        if arm.adapter is None:
            continue
        try:
            info = resolve(arm.adapter.name, arm.adapter.version)
        except (AdapterNotFound, FailedPrecondition) as error:
            yield f"arm {arm.name} cannot answer, so something else does for it: {error.message}"
        else:
            if info.gate:
                yield f"arm {arm.name}: {arm.adapter} did not pass the gate: {info.gate}"
