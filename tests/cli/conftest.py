"""Commands run in an empty folder, against a scripted server where they ask one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from router.config import Settings
from router.registry.options import RegistryOptions
from tests.commands import cli, own_folder, remote

__all__ = ["cli", "own_folder", "remote"]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that is bad, or that changes, is waited for only for a moment."""
    made = RegistryOptions.of

    def of(settings: Settings) -> RegistryOptions:
        return replace(made(settings), grace_seconds=0.2)

    monkeypatch.setattr(RegistryOptions, "of", of)
    monkeypatch.setattr("router.registry.loading.CHANGING_SECONDS", 0.3)
