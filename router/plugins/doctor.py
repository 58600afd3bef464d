"""`plugins doctor`: everything that is wrong with the plugins found, by trying them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from router.classifiers.isolation import StillRunning, call_in_thread
from router.classifiers.registration import Registration
from router.plugins import trial
from router.plugins.host import PluginHost
from router.plugins.judges import JudgeRegistration
from router.plugins.loader import describe

CHECK_SECONDS = 60.0
Check = tuple[str, Callable[[], list[str]]]  # its name, and what lists the problems


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong. `classifier` names a judge too, and is empty where it concerns the plugin."""

    plugin: str
    classifier: str
    level: str  # error: it will not work; warning: it works worse than it could
    check: str
    message: str


def doctor(host: PluginHost, seconds: float = CHECK_SECONDS) -> tuple[Finding, ...]:
    """Load (if not done yet), then try every classifier and judge; blocks, at most `seconds` a check.

    Nothing found means: it imports, its hooks are right, no name is taken twice, it learns, it answers every
    odd text in time and always alike.
    """
    host.refresh()
    findings: list[Finding] = []
    for status in host.status():
        if status.error:
            findings.append(Finding(status.name, "", "error", "load", status.error))
        findings += [Finding(status.name, "", "warning", "load", text) for text in status.warnings]
    for registration in host.registrations():
        findings += examine(registration, seconds)
    for judge in host.judges().values():
        findings += examine_judge(judge, seconds)
    return tuple(findings)


def examine(registration: Registration, seconds: float = CHECK_SECONDS) -> list[Finding]:
    """Try one classifier. What it learned is overwritten by the samples."""
    classifier = registration.classifier
    if lacking := classifier.lacks():
        return [Finding(registration.plugin, registration.name, "warning", "prepare", lacking)]
    checks: list[Check] = [(check.__name__, partial(check, classifier)) for check in trial.CLASSIFIER_CHECKS]
    checks.append(("latency", partial(trial.latency, classifier, registration.timeout)))
    return _examine(registration, checks, seconds)


def examine_judge(registration: JudgeRegistration, seconds: float = CHECK_SECONDS) -> list[Finding]:
    """Try one judge on samples."""
    checks = [(check.__name__, partial(check, registration.judge)) for check in trial.JUDGE_CHECKS]
    return _examine(registration, checks, seconds)


def _examine(
    registration: Registration | JudgeRegistration, checks: Sequence[Check], seconds: float
) -> list[Finding]:
    """Up to the first check that hangs; none after a preparation, which is the first, that fails."""
    findings: list[Finding] = []
    for place, (name, check) in enumerate(checks):
        problems, hangs = _run(check, f"{registration.name} {name}", seconds)
        findings += [
            Finding(registration.plugin, registration.name, "error", name, text) for text in problems
        ]
        if hangs or (problems and place == 0):
            break
    return findings


def _run(check: Callable[[], list[str]], name: str, seconds: float) -> tuple[list[str], bool]:
    """What is wrong, and whether the check did not come back."""
    try:
        return call_in_thread(check, seconds, name), False
    except StillRunning as error:
        return [str(error)], True
    except BaseException as error:
        return [describe(error)], False
