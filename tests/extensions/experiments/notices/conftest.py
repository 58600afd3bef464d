"""A receiver of notices."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.extensions.experiments.notices.receiving import Receiver, receiving


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    """A receiver of notices that answers 200 until it is told something else."""
    monkeypatch.setenv("NO_PROXY", "*")
    with receiving() as server:
        yield server
