"""What a user writes for a source: `hub:ORG/NAME@REVISION` (`hf://` too), `s3://BUCKET/KEY/`, or a folder."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

from router.errors import ConfigError
from router.registry.format.text import show
from router.sources.hub import Hub
from router.sources.local import Local
from router.sources.objects import Objects
from router.sources.source import Source, wrong_name

HUB = ("hub:", "hf://", "hf:")
FILE = "file://"
WEB = "https://huggingface.co/"


def source_of(said: str, subfolder: str = "") -> Source:
    """The source that is meant. Raises ConfigError; nothing is asked for yet."""
    inside = subfolder.rstrip("/")
    if inside and (problem := wrong_name(inside)):
        raise ConfigError(f"--subfolder {show(subfolder)} {problem}")
    for start in HUB:
        if said.startswith(start):
            repo, _, revision = unquote(said.removeprefix(start)).partition("@")
            return Hub(repo, revision, inside)
    if said.startswith(WEB):
        repo = "/".join(said.removeprefix(WEB).split("/")[:2])
        raise ConfigError(f"{show(said)[1:-1]} is a page: say hub:{show(repo)[1:-1]}")
    if "://" in said and not said.startswith(FILE):
        return Objects(said, inside)
    path = Path(said.removeprefix(FILE)).expanduser()
    if not path.is_dir():
        hint = (
            f"; hub:{said} is one on the hub"
            if said.count("/") == 1 and not said.startswith(("/", "."))
            else ""
        )
        raise ConfigError(f"{show(said)[1:-1]} is no folder here{hint}")
    return Local(path, inside)
