"""Experiments whose weights follow the outcomes (`mode = "bandit"`): Thompson sampling, epoch by epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.hookspecs import RegisterExperimentMode, hookimpl

if TYPE_CHECKING:
    from router.experiments.modes import ExperimentMode
    from router.experiments.runtime import LiveExperiments
    from router.routing.router import Router


@hookimpl
def register_experiment_modes(register: RegisterExperimentMode) -> None:
    """`bandit`."""
    register("bandit", make_bandit)


def make_bandit(live: LiveExperiments, router: Router) -> ExperimentMode:
    """The bandits of a server."""
    from router.extensions.experiments_bandit.bandit import Bandit

    return Bandit(live)
