"""Run a section, write its page, and fail where a target is missed."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

SECTIONS = sorted(found.stem for found in Path(__file__).parent.glob("[a-z]*.py"))


def main() -> None:
    """The command."""
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--section", choices=SECTIONS, required=True)
    section = importlib.import_module(f"benchmarks.experiment_truth.{first.parse_known_args()[0].section}")
    parser = argparse.ArgumentParser(parents=[first], description=section.__doc__)
    parser.add_argument("--dry", action="store_true", help="print, write nothing")
    section.arguments(parser)
    if not section.run(parser.parse_args()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
