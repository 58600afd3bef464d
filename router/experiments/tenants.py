"""Experiments by tenant: which arm each gets, and what is wrong with a plan of them.

There are few tenants, of very unlike size. So their arms are not hashed one by one, which could leave an arm
with two of ten: all tenants that the server knows at the start are put into a random order, by a hash of the
phase's salt and the tenant, and divided by the weights. Tenants that come later take no part.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence

from router.errors import FieldViolation
from router.experiments.model import ArmSpec, Mode, Spec
from router.experiments.slices import named_metrics, takes_all_problems
from router.units import fraction

LEAST = 10
"""Tenants from which a difference can be shown with some room: 5 against 5 can be divided in 252 ways."""


def arms_of_tenants(salt: str, tenants: Collection[str], arms: Sequence[ArmSpec]) -> dict[str, str]:
    """Tenant (its hash) to arm, in numbers as near to the weights as they can be."""
    order = sorted(tenants, key=lambda tenant: (fraction(salt, tenant), tenant))
    sizes = [math.floor(arm.weight * len(order) + 1e-9) for arm in arms]
    rest = sorted(range(len(arms)), key=lambda i: (sizes[i] - arms[i].weight * len(order), i))
    for i in rest[: len(order) - sum(sizes)]:
        sizes[i] += 1
    names = [arm.name for arm, size in zip(arms, sizes, strict=True) for _ in range(size)]
    return dict(zip(order, names, strict=True))


def tenant_problems(spec: Spec, tenants: Collection[str] | None) -> Iterator[FieldViolation]:
    """What is wrong with a plan by tenant; `tenants` None: not known here."""
    if not spec.by_tenant:
        return
    if spec.mode is not Mode.SPLIT or not spec.route:
        yield FieldViolation("by_tenant", "belongs to a split of a route: clear mode, and set route")
    if tenants is not None and not tenants:
        text = "needs a clients file (the setting clients): without one, callers do not say whose they are"
        yield FieldViolation("by_tenant", text)
    elif tenants is not None and len(tenants) < len(spec.arms):
        text = f"needs a tenant for each arm: the clients file has {len(tenants)} that may ask for answers"
        yield FieldViolation("by_tenant", text)
    yield from takes_all_problems(spec, "all requests of a tenant have its arm")
    for name, metric in named_metrics(spec):
        if metric.covariate:
            yield FieldViolation(f"{name}.covariate", "must be unset: tenants are compared as they are")
        if metric.cap is not None:
            yield FieldViolation(f"{name}.cap", "must be unset: the test of tenants holds with any tail")


def tenant_warnings(spec: Spec, tenants: Collection[str] | None) -> Iterator[str]:
    """What few tenants cannot show."""
    if not spec.by_tenant:
        return
    if tenants is not None and len(tenants) < LEAST:
        yield f"there are {len(tenants)} tenants: below {LEAST} with answers there is no verdict"
    yield "by tenant, nothing is stopped for harm before the window is over: look at errors by arm"
