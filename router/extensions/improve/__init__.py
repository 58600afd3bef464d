"""`lora-router adapters improve NAME`: from feedback to a better version that serves (docs/improve.md).

`run` has the steps, `state` what is known of a run, `rows` reads feedback and makes rows, `recipes` writes
the recipe, `processes` runs training and comparison, `rule` decides, `canary` puts a version before users.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.hookspecs import hookimpl

if TYPE_CHECKING:
    import typer


@hookimpl
def register_commands(app: typer.Typer) -> None:
    """`adapters improve`."""
    from router.cli.command import group
    from router.extensions.improve.commands import improve

    app.add_typer(group("Adapter folders here.", improve=improve), name="adapters")
