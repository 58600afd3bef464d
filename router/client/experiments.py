"""The client's part for experiments, which may be taken away with the folder router/experiments."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from router.built_in import has_experiments
from router.errors import NO_EXPERIMENTS


def of_experiments(name: str) -> Any:
    """That name of `router.experiments.client`. Raises ModuleNotFoundError where they are not installed."""
    if not has_experiments():
        raise ModuleNotFoundError(NO_EXPERIMENTS, name="router.experiments")
    return getattr(import_module("router.experiments.client"), name)
