"""Native operations of every instruction set at hand; the first run compiles."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from router.engine.native import NativeOps
from router.engine.native.build import cpu_levels, load_module


@pytest.fixture(scope="module", params=cpu_levels())
def native(request: pytest.FixtureRequest) -> Iterator[NativeOps]:
    ops = NativeOps(load_module(request.param))
    before = ops.threads
    yield ops
    ops.threads = before
