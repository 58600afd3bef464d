"""`bench` says which arguments the benchmark takes."""

from __future__ import annotations

import re
from pathlib import Path

ENGINE = Path(__file__).parents[2] / "benchmarks" / "engine.py"


def test_the_help_names_every_argument_of_the_benchmark(cli):
    taken = set(re.findall(r'add_argument\(\s*"(--[a-z-]+)"', ENGINE.read_text(encoding="utf-8")))
    assert taken
    told = cli("bench", "--help").out
    assert [argument for argument in sorted(taken) if f"\n    {argument} " not in told] == []
