"""`lora-router models fetch|list`: base models in the user's cache."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from router.cli import flags


@dataclass(frozen=True, slots=True)
class Cached:
    """A model in the cache."""

    name: str
    bytes: int
    path: Path


def fetch(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="A known name, a hub id OWNER/NAME; default: the default base."),
    ] = "",
    json: flags.Json = False,
) -> None:
    """Fetch a model into the cache.

    Its bytes are verified and its folder is printed. The default base comes with the encoder of the embedding
    classifier.

    \b
    Examples:
      lora-router models fetch
      lora-router models fetch all-minilm-l6-v2
    """
    from router.cli.output import print_json
    from router.models import DEFAULT_BASE, DEFAULT_ENCODER, fetch_encoder, resolve_model

    wanted = (
        [name.lower() if name.lower() == DEFAULT_ENCODER else name]
        if name
        else [DEFAULT_BASE, DEFAULT_ENCODER]
    )
    found = {one: fetch_encoder() if one == DEFAULT_ENCODER else resolve_model(one) for one in wanted}
    if json:
        print_json(found)
    else:
        for one, folder in found.items():
            print(f"{one}  {folder}")


def list_(json: flags.Json = False) -> None:
    """List the models in the cache.

    \b
    Example:
      lora-router models list
    """
    from router.cli import units
    from router.cli.output import print_json, print_table
    from router.models import models_dir

    folders = sorted(p for p in models_dir().glob("[!.]*") if p.is_dir())
    found = [Cached(p.name, _bytes(p), p) for p in folders]
    if json:
        print_json(found)
    elif found:
        print_table(["NAME", "SIZE", "PATH"], [(f.name, units.size(f.bytes), str(f.path)) for f in found])
    else:
        print("no models yet; `lora-router models fetch` gets the default base")


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
