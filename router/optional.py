"""The part of this package that may be taken away, and the one place that finds it: `router.experiments`.

Nothing else imports it: the server, the client and the command line ask here, and do without where the
folder is not there. Once asked, an answer stands for the life of the process.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

NOT_INSTALLED = "experiments are not installed: the folder router/experiments is not there"
OFF = (
    "experiments are off, since the setting `experiments` is empty: set it to auto or to the URL of a "
    "database, and start the server again"
)
_EXPERIMENTS = "router.experiments"


@cache
def has_experiments() -> bool:
    """Whether experiments are installed. A folder without its modules is none."""
    spec = find_spec(_EXPERIMENTS)
    return spec is not None and spec.origin is not None


def why_absent() -> str:
    """Why a server has none."""
    return OFF if has_experiments() else NOT_INSTALLED


def experiments(part: str) -> Any:
    """The module `part` of experiments. Raises ModuleNotFoundError where they are not installed."""
    if not has_experiments():
        raise ModuleNotFoundError(NOT_INSTALLED, name=_EXPERIMENTS)
    return import_module(f"{_EXPERIMENTS}.{part}")
