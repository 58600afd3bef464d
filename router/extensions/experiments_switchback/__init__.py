"""Experiments in which the whole route has one arm at a time (`mode = "switchback"`), as for latency."""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.hookspecs import RegisterExperimentMode, hookimpl

if TYPE_CHECKING:
    from router.experiments.modes import ExperimentMode
    from router.experiments.runtime import LiveExperiments
    from router.routing.router import Router


@hookimpl
def register_experiment_modes(register: RegisterExperimentMode) -> None:
    """`switchback`."""
    register("switchback", make_switchback)


def make_switchback(live: LiveExperiments, router: Router) -> ExperimentMode:
    """The switchbacks of a server. Which arm a slice has is the core's matter; this judges them."""
    from router.extensions.experiments_switchback.switchback import SwitchbackMode

    return SwitchbackMode(live.store)
