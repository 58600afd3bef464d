"""`lora-router experiments aa`: an experiment of equal arms shows whether assignment and statistics work."""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.built_in import has_experiments
from router.markers import hookimpl

if TYPE_CHECKING:
    import typer


@hookimpl
def register_commands(app: typer.Typer) -> None:
    """`experiments aa`; none where experiments are not installed."""
    if not has_experiments():
        return
    from router.cli.command import group
    from router.extensions.experiments_aa.commands import aa

    experiments = group("Whether experiments work.")
    experiments.command("aa", hidden=True)(aa)
    app.add_typer(experiments, name="experiments")
