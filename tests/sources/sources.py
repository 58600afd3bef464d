"""The sources of built-in plugins, as `adapters add` and mirrors have them."""

from __future__ import annotations

from router.plugins import PluginHost
from router.sources import specifier
from router.sources.source import Source

_host = PluginHost([], built_in=True)
_host.refresh()
ENTRIES = _host.sources()
MAKERS = {scheme: entry.source for scheme, entry in ENTRIES.items()}


def source_of(text: str, subfolder: str = "") -> Source:
    """As `router.sources.specifier`, with these."""
    return specifier.source_of(text, subfolder, MAKERS)
