"""What a server shares with other edges."""

from __future__ import annotations

from router.extensions.sharing.sharing import edge_name


def test_no_two_processes_have_one_name() -> None:
    assert edge_name() != edge_name()
