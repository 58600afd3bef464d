"""What deserves a second look in a plan that may be kept all the same."""

from __future__ import annotations

from collections.abc import Iterator

from router.errors import AdapterNotFound, FailedPrecondition
from router.experiments.management.known import Resolve
from router.experiments.model import Spec


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
