"""After kill -9, a server on the real base serves with every adapter that was ready, within ten seconds."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from router.client import Client
from tests.faults.served import ROOT
from tests.serving import serving

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.alone, pytest.mark.timeout(400)]
MOST_SECONDS = 10.0


def ready(address: str) -> set[str]:
    with Client(address) as client:
        return {str(adapter.name) for adapter in client.adapters.list() if adapter.state == "READY"}


def test_it_serves_again_in_time(tmp_path: Path, record_property: pytest.RecordProperty) -> None:
    state, flags = {"XDG_STATE_HOME": str(tmp_path / "state")}, ("--adapters-dir", str(ROOT / "adapters"))
    with serving(tmp_path, *flags, **state) as (child, address):
        before = ready(address)
        child.send_signal(signal.SIGKILL)
        child.wait()
    begun = time.monotonic()
    with serving(tmp_path, *flags, **state) as (_, address):
        with Client(address) as client:
            assert client.generate("What is gout?", max_tokens=4).text
        took = time.monotonic() - begun
        assert ready(address) == before
    assert len(before) >= 7
    record_property("seconds from the start to an answer", round(took, 2))
    print(f"{took:.2f} s from the start to an answer, with {len(before)} adapters ready")
    assert took <= MOST_SECONDS
