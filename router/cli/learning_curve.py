"""`lora-router adapters learning-curve`: how much training data an adapter needs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from router.cli.learning import Device, Recipe, Work

Fractions = Annotated[
    str, typer.Option("--fractions", metavar="F,F", help="Parts of the training rows, between 0 and 1.")
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", metavar="DIR", help="Folder of the whole adapter. Default: adapters/NAME."
    ),
]


def learning_curve(
    recipe: Recipe,
    fractions: Fractions = "0.1,0.3",
    output: Output = None,
    work: Work = Path("runs"),
    device: Device = "auto",
) -> None:
    """Measure how much training data an adapter needs.

    Trains it again on parts of its training rows, scores each on the test split and writes data_need.json
    into the adapter's folder, where `adapters evaluate` finds it. Parts that are done are kept; after
    Ctrl-C the same command goes on.

    \b
    Example:
      lora-router adapters learning-curve recipes/medical.toml --fractions 0.1,0.3
    """
    from router.cli.quiet import quiet
    from router.evaluation.learning_curve import learning_curve as run

    quiet()
    written = run(recipe, _numbers(fractions), output=output, work=work, device=device)
    print(f"{written}\n\nput it into the report card:\n  lora-router adapters evaluate {written.parent}")


def _numbers(text: str) -> list[float]:
    from router.errors import ConfigError

    try:
        return [float(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise ConfigError(f"--fractions {text}: must be numbers with commas, such as 0.1,0.3") from error
