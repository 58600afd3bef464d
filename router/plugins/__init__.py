"""The plugin host: finds plugins, keeps their faults apart, picks up changes while the server runs."""

from router.plugins.host import PluginHost
from router.plugins.registration import Registration
from router.plugins.status import ClassifierStatus, Health, PluginStatus

__all__ = ["ClassifierStatus", "Health", "PluginHost", "PluginStatus", "Registration"]
