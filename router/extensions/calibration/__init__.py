"""Calibrations fitted, proven, compared and learned from, offline: `lora-router route calibrate` and others.

`rows` are labelled requests, and with votes ballots. `fit` finds the weights (`stages`, `logit`), `certify`
and `offer` the thresholds, `refit` proves again; `evaluation` and `curve` measure. `learning` tries what
corrections propose (`proposals`), and `manifest` writes it. `router.calibration` is what a server reads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.hookspecs import hookimpl

if TYPE_CHECKING:
    import typer


@hookimpl
def register_commands(app: typer.Typer) -> None:
    """`route calibrate`, `evaluate`, `curve`, `diff` and `learn`."""
    from router.cli.command import group
    from router.extensions.calibration.commands.calibrate import calibrate
    from router.extensions.calibration.commands.curve import curve
    from router.extensions.calibration.commands.diff import diff
    from router.extensions.calibration.commands.evaluate import evaluate
    from router.extensions.calibration.commands.learn import learn

    routing = group(
        "How well the classifiers here do.",
        calibrate=calibrate,
        evaluate=evaluate,
        curve=curve,
        diff=diff,
        learn=learn,
    )
    app.add_typer(routing, name="route")
