"""What an operator sees of plugins, their classifiers and their judges."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Health:
    """Live state of one classifier. Written by routing on the event loop, read by anyone."""

    state: str = "starting"  # starting, ready, failed, disabled, off
    breaker: str = "closed"  # closed, open, half-open
    calls: int = 0
    requests: int = 0
    errors: int = 0  # failed calls: raised, timeout, invalid
    last_error: str = ""
    fit_error: str = ""
    stuck: int = 0  # calls that never returned


@dataclass(frozen=True, slots=True)
class ClassifierStatus:
    """One registered classifier."""

    name: str
    version: str
    priority: int
    timeout_ms: int
    required: bool
    state: str
    breaker: str
    calls: int
    requests: int
    errors: int
    last_error: str
    fit_error: str
    stuck: int


@dataclass(slots=True)
class JudgeHealth:
    """Live state of one judge. Written on the event loop, read by anyone."""

    breaker: str = "closed"  # closed, open, half-open
    judged: int = 0
    declined: int = 0
    errors: int = 0  # raised, timeout, invalid
    last_error: str = ""
    stuck: int = 0  # calls that have not returned yet


@dataclass(frozen=True, slots=True)
class JudgeStatus:
    """One registered judge."""

    name: str
    version: str
    timeout_ms: int
    breaker: str
    judged: int
    declined: int
    errors: int
    last_error: str
    stuck: int


@dataclass(frozen=True, slots=True)
class PluginStatus:
    """One plugin, loaded or not.

    `error` says why it, or its newest version, does not work; classifiers and judges listed beside an error
    belong to the last version that did.
    """

    name: str
    source: str  # file, entry-point, folder, allow-list
    path: str
    version: str = ""
    digest: str = ""  # sha256 of the file's bytes, hex
    enabled: bool = True
    error: str = ""
    warnings: tuple[str, ...] = ()
    classifiers: tuple[ClassifierStatus, ...] = ()
    judges: tuple[JudgeStatus, ...] = ()
