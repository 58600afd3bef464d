"""Experiments whose arms are configurations of the router: one set of rules against another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.hookspecs import RegisterExperimentMode, hookimpl

if TYPE_CHECKING:
    from router.experiments.modes import ExperimentMode
    from router.experiments.runtime import LiveExperiments
    from router.routing.router import Router


@hookimpl
def register_experiment_modes(register: RegisterExperimentMode) -> None:
    """`routers`."""
    register("routers", make_routers)


def make_routers(live: LiveExperiments, router: Router) -> ExperimentMode:
    """The router experiments of a server."""
    from router.extensions.experiments_routers.routers import Routers

    return Routers(live, router)
