"""The plugin host: finds plugins, keeps their faults apart, picks up changes while the server runs."""

from router.classifiers.registration import Registration
from router.plugins.host import PluginHost, PluginStatus
from router.plugins.judges import JudgeRegistration

__all__ = ["JudgeRegistration", "PluginHost", "PluginStatus", "Registration"]
