"""`make audit`: known weaknesses of the packages in lock files, or a clear word that nobody could be asked.

pip-audit passes over a package that its database does not know, and exits with 0 where it knows none at all,
as behind a mirror that has packages and no advisories. Here a package that was passed over is a failure.
Local versions (torch's 2.13.0+cpu) are asked about as what they are builds of.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FOUND, NOT_ASKED = 1, 2
PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\+]+)(?:\+[^\s;\\]+)?", re.MULTILINE)


def pins(lock: str) -> list[str]:
    """NAME==VERSION of each package in a lock file, without local versions."""
    return [f"{name}=={version}" for name, version in PIN.findall(lock)]


def main(arguments: Sequence[str] | None = None) -> int:
    """0: nothing is known against any package; 1: something is; 2: not every package could be asked about."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pip-audit", default="pip-audit")
    parser.add_argument("locks", nargs="+", type=Path)
    options = parser.parse_args(arguments)
    wanted = sorted({pin for lock in options.locks for pin in pins(lock.read_text(encoding="utf-8"))})
    with tempfile.TemporaryDirectory() as folder:
        listed = Path(folder, "requirements.txt")
        listed.write_text("\n".join(wanted) + "\n", encoding="utf-8")
        command = [options.pip_audit, "--no-deps", "--disable-pip", "--progress-spinner", "off"]
        ran = subprocess.run(
            [*command, "--format", "json", "--requirement", str(listed)], capture_output=True, text=True
        )
    return judge(wanted, ran.stdout, ran.stderr)


def judge(wanted: Sequence[str], output: str, errors: str) -> int:
    """Says what pip-audit's answer means, and returns the exit code."""
    try:
        told: list[dict[str, Any]] = json.loads(output)["dependencies"]
    except (ValueError, KeyError, TypeError):
        last = (errors.strip().splitlines() or ["it said nothing"])[-1]
        say(f"audit: NOT DONE: the advisory database could not be asked: {last}")
        return NOT_ASKED
    asked = {f"{one['name']}=={one['version']}" for one in told if "version" in one}
    missed = [pin for pin in wanted if pin.lower() not in {pin.lower() for pin in asked}]
    bad = [(one, weakness) for one in told for weakness in one.get("vulns", ())]
    for one, weakness in bad:
        fixed = ", ".join(weakness.get("fix_versions", ())) or "no version"
        say(f"audit: {one['name']} {one['version']}: {weakness['id']}, mended in {fixed}")
    if missed:
        few = ", ".join(missed[:3]) + (", ..." if len(missed) > 3 else "")
        say(f"audit: NOT DONE: nothing was said of {len(missed)} of {len(wanted)} packages ({few})")
    elif not bad:
        say(f"audit: nothing is known against {len(wanted)} packages")
    return FOUND if bad else NOT_ASKED if missed else 0


def say(line: str) -> None:
    """To standard error, as all findings."""
    print(line, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
