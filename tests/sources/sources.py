"""The sources of built-in plugins, as `adapters add` has them."""

from __future__ import annotations

from router.plugins import PluginHost
from router.sources import source

_host = PluginHost([], built_in=True)
_host.refresh()
ENTRIES = _host.sources()
MAKERS = {scheme: entry.make for scheme, entry in ENTRIES.items()}


def source_of(text: str, subfolder: str = "") -> source.AdapterSource:
    """As `router.sources.source`, with these."""
    return source.source_of(text, subfolder, MAKERS)
