"""The whole loop on the real base: corrections become a version that serves, and noise becomes none."""

from __future__ import annotations

from argparse import Namespace

import pytest

from benchmarks.improve import SECTIONS

pytestmark = [pytest.mark.long, pytest.mark.slow]
RUNS = 3  # of random feedback; the benchmark has 20


@pytest.mark.parametrize("section", ["loop", "random", "poison"])
def test_section_meets_its_targets(section, capsys):
    options = Namespace(section=section, rows=300, users=3000, runs=RUNS, first=100, keep=None, dry=True)
    met = SECTIONS[section](options)
    assert met, capsys.readouterr().out
