"""Every hook a plugin can implement. All are called at start-up and reload, never per request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import pluggy

if TYPE_CHECKING:
    from router.classifiers.contract import Classifier
    from router.judging import Judge

NAME = "lora_router"
hookspec = pluggy.HookspecMarker(NAME)
hookimpl = pluggy.HookimplMarker(NAME)


class RegisterClassifier(Protocol):
    """The callback given to `register_classifiers`."""

    def __call__(
        self,
        classifier: Classifier,
        *,
        priority: int = 100,
        timeout_ms: int = 50,
        required: bool = False,
        optional: bool = False,
    ) -> None:
        """Lower `priority` is asked earlier; votes that take over `timeout_ms` of processor time are lost.

        `optional`: off unless the setting `load_plugins` names the plugin.
        """


@hookspec
def register_classifiers(register: RegisterClassifier) -> None:
    """Call `register(MyClassifier(), priority=100, timeout_ms=50)` for each classifier."""


class RegisterJudge(Protocol):
    """The callback given to `register_judges`."""

    def __call__(self, judge: Judge, *, timeout_ms: int = 5000) -> None:
        """An answer later than `timeout_ms` costs the pair."""


@hookspec
def register_judges(register: RegisterJudge) -> None:
    """Call `register(MyJudge(), timeout_ms=5000)` for each judge of shadow answers."""
