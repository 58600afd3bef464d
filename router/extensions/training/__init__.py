"""`lora-router adapters new`, `train`, `evaluate` and `convert`, `compare` and `improve` (extra `train`).

`recipe` and `data` are what a run depends on, `trainer` learns, `probes` and `export` make the folder; `run`
is the whole way. `new_recipe` writes a recipe out of somebody's file (`rows`), `evaluation` measures adapters
and compares two, `conversion` makes a folder out of another one, `improve` trains a version on feedback.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from router.markers import hookimpl

if TYPE_CHECKING:
    import typer

__all__ = ["train"]


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


def train(
    recipe: Path,
    output: Path | None = None,
    *,
    resume: bool = False,
    work: Path = Path("runs"),
    device: str = "auto",
) -> Path:
    """Train an adapter by a recipe and return its folder, `output` or adapters/NAME.

    A second version has a recipe of its own: NAME-SOMETHING.toml makes adapters/NAME-SOMETHING.
    A checkpoint in `work`/NAME, or NAME-SOMETHING, is written at every evaluation and on Ctrl-C (which then
    raises KeyboardInterrupt); with `resume` the run goes on from it as if it had never stopped.
    Raises ConfigError (recipe or data), FailedPrecondition (diverged; checkpoint of another run;
    `output` is something else), ResourceExhausted (disk full).
    """
    from router.extensions.training.evaluation import require_extra

    require_extra("training")  # hours of training must not end without it
    from router.extensions.training.recipe import load_recipe
    from router.extensions.training.run import run

    name = load_recipe(recipe).adapter.name
    if recipe.stem.startswith(f"{name}-"):
        name = recipe.stem
    target = output or Path("adapters") / name
    run(recipe, target, work / name / "checkpoint.pt", resume, device)
    return target
