"""Packages of the extra that are missing are named before anything else is done."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from router.errors import ConfigError
from router.extensions.training.evaluation import PACKAGES, evaluate
from router.extensions.training.evaluation.learning_curve import learning_curve


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize(
    "measure",
    [lambda: evaluate(["nobody"]), lambda: learning_curve(Path("no.toml"))],
    ids=["evaluate", "curve"],
)
def test_a_missing_package_is_named(
    monkeypatch: pytest.MonkeyPatch, package: str, measure: Callable[[], object]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"needs {package}: pip install -e '\.\[train\]' in the checkout"):
        measure()
