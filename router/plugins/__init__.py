"""The plugin host: finds plugins, keeps their faults apart, picks up changes while the server runs."""

from router.classifiers.registration import ClassifierStatus, Health, JudgeStatus, PluginStatus, Registration
from router.plugins.host import PluginHost
from router.plugins.judges import JudgeRegistration

__all__ = [
    "ClassifierStatus",
    "Health",
    "JudgeRegistration",
    "JudgeStatus",
    "PluginHost",
    "PluginStatus",
    "Registration",
]
