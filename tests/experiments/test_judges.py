"""Plugins that were written for the earlier name of the judges' contract go on working."""

from __future__ import annotations

from router import judging
from router.experiments import judges


def test_both_names_are_one_contract() -> None:
    assert all(getattr(judges, name) is getattr(judging, name) for name in judges.__all__)
