"""`lora-router adapters convert`: adapter folders that cannot be served as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from router.cli.adapters.validate import base_for
from router.cli.command import CliError

Source = Annotated[Path, typer.Argument(metavar="SRC", help="Adapter folder; it stays as it is.")]
Target = Annotated[Path, typer.Argument(metavar="DST", help="Folder to write.")]
Model = Annotated[
    str, typer.Option("--model", metavar="MODEL", help="The base that it is for. Default: the one served.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace an adapter folder that exists.")]


def convert(src: Source, dst: Target, model: Model = "", force: Force = False) -> None:
    """Make an adapter folder one that can be served.

    Reads adapter_model.bin and shards; leaves out a tokenizer with a new pad token, whole matrices that equal
    the base's, and DoRA's magnitudes where they scale by 1. What would change answers is refused.

    \b
    Example:
      lora-router adapters convert ~/trained/out adapters/support
    """
    from router.cli.base_files import find_base
    from router.cli.command import quiet_libraries
    from router.cli.settings import load_settings
    from router.errors import AdapterRejected
    from router.registry.format.artifact import validate_folder
    from router.training.conversion import Base
    from router.training.conversion import convert as run

    settings = load_settings({"model": model} if model else None)
    if dst.exists() and not force:
        raise CliError(f"{dst} exists already; name another folder, or --force to replace it")
    folder, base = find_base(settings.model), base_for(settings.model, [src])
    if folder is None or base is None:
        raise CliError("the base is not here yet: `lora-router models fetch` gets it")
    quiet_libraries()

    def check(made: Path) -> None:
        report = validate_folder(made, base, max_rank=settings.max_rank)
        if not report.ok:
            raise AdapterRejected(f"{src} cannot be served, converted either: {report.inspection.error}")

    for line in run(src, dst, Base(folder, base.vocab_size), check):
        print(line)
    print(f"{dst}\n\ncheck it:\n  lora-router adapters validate {dst}")
