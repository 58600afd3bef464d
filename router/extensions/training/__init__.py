"""`lora-router adapters new`, `train`, `evaluate` and `convert`, `compare` and `improve` (extra `train`).

`recipe` and `data` are what a run depends on, `trainer` learns, `probes` and `export` make the folder; `run`
is the whole way. `new_recipe` writes a recipe out of somebody's file (`rows`), `evaluation` measures adapters
and compares two, `conversion` makes a folder out of another one, `improve` trains a version on feedback.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.markers import hookimpl

if TYPE_CHECKING:
    import typer


@hookimpl
def register_commands(app: typer.Typer) -> None:
    """`adapters new`, `train`, `evaluate`, `convert`, `improve`, and `compare`."""
    from router.cli.command import group
    from router.extensions.training.commands import folders
    from router.extensions.training.commands.compare import compare

    adapters = group(
        "Adapter folders here.",
        convert=folders.convert,
        new=folders.new,
        train=folders.train,
        evaluate=folders.evaluate,
        improve=folders.improve,
    )
    app.add_typer(adapters, name="adapters")
    app.command()(compare)
