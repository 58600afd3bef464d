"""`lora-router experiments export`: what is kept of a phase as files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.built_in import has_experiments
from router.markers import hookimpl

if TYPE_CHECKING:
    import typer


@hookimpl
def register_commands(app: typer.Typer) -> None:
    """`export`; none where experiments are not installed."""
    if not has_experiments():
        return
    from router.cli.command import group
    from router.extensions.experiments_export.commands import export

    app.add_typer(group("What experiments keep, as files.", export=export), name="experiments")
