"""The plugin host: finds plugins, keeps their faults apart, picks up changes while the server runs."""

from router.plugins.host import PluginHost
from router.plugins.judges import JudgeRegistration
from router.plugins.registration import Registration
from router.plugins.status import ClassifierStatus, Health, JudgeStatus, PluginStatus

__all__ = [
    "ClassifierStatus",
    "Health",
    "JudgeRegistration",
    "JudgeStatus",
    "PluginHost",
    "PluginStatus",
    "Registration",
]
