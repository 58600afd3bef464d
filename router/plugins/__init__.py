"""The plugin host finds plugins, loads them and picks up changes; `Hooks` calls them while a server runs."""

from router.classifiers.registration import Registration
from router.plugins.host import PluginHost, PluginStatus
from router.plugins.judges import JudgeRegistration
from router.plugins.runtime import Hooks

__all__ = ["Hooks", "JudgeRegistration", "PluginHost", "PluginStatus", "Registration"]
