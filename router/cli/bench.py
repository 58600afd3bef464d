"""`lora-router bench`: the benchmark of a checkout."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import typer

from router.cli.command import CliError

ROOT = Path(__file__).resolve().parents[2]


def bench(context: typer.Context) -> None:
    """Measure this engine on this machine, beside PEFT.

    Each contestant has a process of its own. Arguments go to the benchmark. It lives in the source checkout,
    not in the installed package.

    \b
    Arguments:
      --rounds N     counted rounds (5)
      --model MODEL  the base
      --dtype DTYPE  as for serve
      --no-peft      leave the PEFT baseline out

    \b
    Example:
      lora-router bench --rounds 3 --no-peft
    """
    if not (ROOT / "benchmarks" / "engine.py").is_file():
        raise CliError("the benchmark comes with the source: run `make bench` in a checkout of lora-router")
    os.chdir(ROOT)
    sys.stdout.flush()
    # In this process' place, so that Ctrl-C and other signals reach the one that ends all contestants.
    os.execv(sys.executable, [sys.executable, "-m", "benchmarks.engine", *context.args])  # noqa: S606
