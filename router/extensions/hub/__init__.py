"""The adapter source `hub:ORG/NAME@REVISION`: the Hugging Face Hub and its mirrors."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING
from urllib.parse import unquote

from router.errors import ConfigError, install_extra
from router.hookspecs import RegisterSource
from router.markers import hookimpl

if TYPE_CHECKING:
    from router.sources.source import AdapterSource


@hookimpl
def register_adapter_sources(register: RegisterSource) -> None:
    """`hub:`, `hf:` and `hf://`."""
    register("hub", make_source)
    register("hf", make_source)


def make_source(text: str, subfolder: str) -> AdapterSource:
    """The source of such a text. Raises ConfigError."""
    if find_spec("huggingface_hub") is None:
        raise ConfigError(f"{text} needs the package huggingface_hub: {install_extra('hub')}")
    from router.extensions.hub.source import Hub

    place = text.partition(":")[2].removeprefix("//")
    repo, _, revision = unquote(place).partition("@")
    return Hub(repo, revision, subfolder)
