"""The plugin host finds plugins, loads them and picks up changes; `Hooks` calls them while a server runs."""

from router.classifiers.contract import Registration
from router.plugins.host import PluginHost, PluginStatus
from router.plugins.runtime import Hooks

__all__ = ["Hooks", "PluginHost", "PluginStatus", "Registration"]
