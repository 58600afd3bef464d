"""What a user writes for a source: a folder, or SCHEME:TEXT, which a plugin knows (`hub:ORG/NAME`)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from router.errors import ConfigError
from router.registry.format.text import show
from router.sources.local import Local
from router.sources.source import Source, wrong_name

SCHEME = re.compile(r"([a-z0-9][a-z0-9_+.-]+):")
FILE = "file://"
ANY = "*"  # every SCHEME:// that is not there by its name
WEB = "https://huggingface.co/"
Make = Callable[[str, str], Source]


def source_of(specifier: str, subfolder: str = "", sources: Mapping[str, Make] | None = None) -> Source:
    """The source that is meant. `sources`: those of plugins by scheme.

    Raises ConfigError; nothing is asked for yet.
    """
    found = sources or {}
    inside = subfolder.rstrip("/")
    if inside and (problem := wrong_name(inside)):
        raise ConfigError(f"--subfolder {show(subfolder)} {problem}")
    scheme = named[1] if (named := SCHEME.match(specifier)) else ""
    if scheme in found and scheme != "file":
        return found[scheme](specifier, inside)
    if specifier.startswith(WEB) and "hub" in found:
        repo = "/".join(specifier.removeprefix(WEB).split("/")[:2])
        raise ConfigError(f"{show(specifier)[1:-1]} is a page: say hub:{show(repo)[1:-1]}")
    if "://" in specifier and not specifier.startswith(FILE):
        if ANY not in found:
            known = ", ".join(f"{name}:" for name in sorted(found)) or "none"
            raise ConfigError(f"{scheme}:// is no source of adapters here; plugins have {known}")
        return found[ANY](specifier, inside)
    path = Path(specifier.removeprefix(FILE)).expanduser()
    if not path.is_dir():
        short = specifier.count("/") == 1 and not specifier.startswith(("/", "."))
        hint = f"; hub:{specifier} is one on the hub" if short and "hub" in found else ""
        raise ConfigError(f"{show(specifier)[1:-1]} is no folder here{hint}")
    return Local(path, inside)
