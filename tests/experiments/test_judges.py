"""Plugins that were written for the earlier name of the judges' contract go on working."""

from __future__ import annotations

from router import judging
from router.experiments import judges


def test_both_names_are_one_contract() -> None:
    public = {
        name for name, value in vars(judging).items() if getattr(value, "__module__", "") == judging.__name__
    }
    assert {*public, "REFERENCE"} == set(judges.__all__)
    assert all(getattr(judges, name) is getattr(judging, name) for name in judges.__all__)
