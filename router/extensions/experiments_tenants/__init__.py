"""Experiments whose unit is the tenant of the client that asks (`by_tenant`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.hookspecs import RegisterExperimentMode, hookimpl

if TYPE_CHECKING:
    from router.experiments.modes import ExperimentMode
    from router.experiments.runtime import LiveExperiments
    from router.routing.router import Router


@hookimpl
def register_experiment_modes(register: RegisterExperimentMode) -> None:
    """`tenants`."""
    register("tenants", make_tenants)


def make_tenants(live: LiveExperiments, router: Router) -> ExperimentMode:
    """The experiments by tenant of a server. The core gives tenants their arms; this judges them."""
    from router.extensions.experiments_tenants.by_tenant import ByTenant

    return ByTenant(live.store)
