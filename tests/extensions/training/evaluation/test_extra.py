"""Packages of the extra that are missing are named before anything else is done."""

from __future__ import annotations

import sys

import pytest

from router.errors import ConfigError
from router.extensions.training.evaluation import PACKAGES, evaluate


@pytest.mark.parametrize("package", PACKAGES)
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"needs {package}: pip install -e '\.\[train\]' in the checkout"):
        evaluate(["nobody"])
