"""`make test-long`: the tests marked `long`, and a page that says how they went: `python -m tests.long`."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from benchmarks.report import write


class Watch:
    """A pytest plugin that keeps how each test ended and how long it took."""

    def __init__(self) -> None:
        self.rows: list[dict[str, str | float]] = []
        self._seconds = 0.0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Setup, call and teardown of a test make one row; the first that does not pass decides."""
        if report.when == "setup":
            self.rows.append({"test": report.nodeid, "ended": "passed", "seconds": 0.0})
            self._seconds = 0.0
        self._seconds += report.duration
        row = self.rows[-1]
        row["seconds"] = round(self._seconds, 1)
        if row["ended"] == "passed" and report.outcome != "passed":
            row["ended"] = report.outcome


def main() -> int:
    """Run them; returns pytest's exit code."""
    watch, began = Watch(), time.monotonic()
    code = pytest.main(["-m", "long", *sys.argv[1:]], plugins=[watch])
    if watch.rows:
        commit = subprocess.run(("git", "rev-parse", "--short", "HEAD"), capture_output=True, text=True)
        took = f"{time.monotonic() - began:.0f} s in all, at commit {commit.stdout.strip() or 'unknown'}."
        print(write("test-long", took, watch.rows, ["Written by `make test-long`."], page="load"))
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
