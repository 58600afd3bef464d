"""Calibration: `lora-router route calibrate` and `evaluate` route labelled requests without a server.

`rows` are the requests and where they go at each threshold, which `offline` finds with the router that
serves. `certify` proves a threshold, `evaluation` measures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.markers import hookimpl

if TYPE_CHECKING:
    import typer


@hookimpl
def register_commands(app: typer.Typer) -> None:
    """`route calibrate` and `route evaluate`."""
    from router.cli.command import group
    from router.extensions.calibration.commands.calibrate import calibrate
    from router.extensions.calibration.commands.evaluate import evaluate

    app.add_typer(
        group("How well requests are routed.", calibrate=calibrate, evaluate=evaluate), name="route"
    )
