"""`lora-router adapters validate`: everything that is wrong with an adapter folder, at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from router.cli import flags

Paths = Annotated[list[Path], typer.Argument(metavar="FOLDER...", help="Adapter folders.")]


def validate(paths: Paths, json: flags.Json = False) -> None:
    """Check adapter folders, without a server.

    Tells everything that is wrong at once. Exit code 1 if any folder is refused.

    \b
    Examples:
      lora-router adapters validate adapters/medical
      lora-router adapters validate --json adapters/*
    """
    raise NotImplementedError(paths)
