"""A scripted server for tests of the client."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from tests.extensions.experiments.scripted import scripted_server


@pytest.fixture
def remote() -> Iterator[SimpleNamespace]:
    """A scripted server: `.target`, `.inference`, `.adapters`, `.experiments`."""
    with scripted_server() as server:
        yield server
