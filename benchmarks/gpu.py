"""`make bench-gpu`: everything that one card can show about the CUDA path, in at most 45 minutes.

Each stage runs in a process of its own with a limit of its own, so that one that hangs or crashes costs no
other. A stage writes its rows as it gets them; the page is written again after each stage. If the card, the
tests or parity fail, the run stops there: the speed of wrong answers says nothing.

`python -m benchmarks.gpu --rehearse` takes the same way without a card: tiny models on the CPU, Triton's
interpreter where Triton is installed, and a clock in place of CUDA's events. It writes no page.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.contestants import ROOT

MINUTES = 45.0
LAST_LINES = 12  # of a stage that fails


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of the run. `needed`: nothing after it is worth running if it fails."""

    name: str
    minutes: float
    title: str
    needed: bool = False


STAGES = (
    Stage("card", 2, "The card, its driver and the libraries", needed=True),
    Stage("tests", 9, "Tests marked `gpu`, and every kernel against plain torch", needed=True),
    Stage("parity", 5, "Log-probabilities of the default base against transformers and PEFT", needed=True),
    Stage("operations", 7, "Operations of a base with 8 billion parameters"),
    Stage("step", 9, "Steps of a base with 8 billion parameters"),
    Stage("peers", 9, "The same work in PEFT and vLLM"),
    Stage("limits", 4, "Memory, adapters that come and go, waits for the device"),
)
assert sum(stage.minutes for stage in STAGES) <= MINUTES


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a stage found. `failed` is empty if it did all that it should."""

    stage: Stage
    rows: list[dict[str, Any]]
    notes: list[str]
    failed: str
    seconds: float


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stages; the exit status is 1 if one fails."""
    args = parser().parse_args(argv)
    chosen = [stage for stage in STAGES if not args.only or stage.name in args.only]
    found: list[Outcome] = []
    end = time.monotonic() + 60 * args.minutes
    with tempfile.TemporaryDirectory() as folder:
        for stage in chosen:
            left = min(60 * stage.minutes, end - time.monotonic())
            print(f"{stage.name}: {stage.title} (at most {left / 60:.1f} minutes)", flush=True)
            found.append(run(stage, args, Path(folder), left))
            show(found[-1])
            if not args.rehearse:
                print("written to", page(found, args))
            if found[-1].failed and stage.needed and not args.go_on:
                print(f"{stage.name} failed: the stages after it do not run (--go-on runs them)")
                break
    failed = [outcome.stage.name for outcome in found if outcome.failed]
    print(f"failed: {', '.join(failed)}" if failed else "all stages passed")
    return int(bool(failed))


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--rehearse", action="store_true", help="without a card, on tiny models")
    made.add_argument("--only", nargs="*", choices=[stage.name for stage in STAGES], metavar="STAGE")
    made.add_argument("--minutes", type=float, default=MINUTES, help="limit of the whole run")
    made.add_argument("--device", default="cuda:0")
    made.add_argument(
        "--go-on", action="store_true", help="also after a stage that the others rest on failed"
    )
    made.add_argument("--vllm-python", default="", help="Python of an environment that has vLLM for CUDA")
    return made


def run(stage: Stage, args: argparse.Namespace, folder: Path, seconds: float) -> Outcome:
    """One stage, ended after so many seconds. What it had written by then counts."""
    out = folder / f"{stage.name}.json"
    command = [sys.executable, "-m", "benchmarks.gpu_stages", stage.name, "--out", str(out)]
    command += ["--device", "cpu" if args.rehearse else args.device, "--vllm-python", args.vllm_python]
    environment = dict(os.environ)
    if args.rehearse:
        command.append("--rehearse")
        if find_spec("triton") is not None:
            environment["TRITON_INTERPRET"] = "1"
    begin = time.monotonic()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=errors, stderr=errors, start_new_session=True
        )
        try:
            status: int | None = process.wait(max(1.0, seconds))
        except subprocess.TimeoutExpired:
            status = None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        errors.seek(0)
        last = errors.read().decode(errors="replace").splitlines()[-LAST_LINES:]
    found: dict[str, Any] = (
        json.loads(out.read_text()) if out.exists() else {"rows": [], "notes": [], "failed": ""}
    )
    failed = found["failed"]
    if status is None:
        failed = f"took more than {seconds / 60:.1f} minutes"
    elif status and not failed:
        failed = "\n".join([f"ended with status {status}:", *last])
    return Outcome(stage, found["rows"], found["notes"], failed, time.monotonic() - begin)


def show(outcome: Outcome) -> None:
    """A stage's result for people at a terminal."""
    state = f"FAILED: {outcome.failed}" if outcome.failed else "passed"
    print(f"{outcome.stage.name}: {state}, {outcome.seconds:.0f} s")
    if outcome.rows:
        print(report.table(outcome.rows))
    for note in outcome.notes:
        print(f"- {note}")


def page(found: Sequence[Outcome], args: argparse.Namespace) -> Path:
    """results/gpu.md, with the stages so far."""
    summary = [
        {
            "stage": outcome.stage.name,
            "result": "failed" if outcome.failed else "passed",
            "seconds": outcome.seconds,
        }
        for outcome in found
    ]
    notes = [
        f"{outcome.stage.name}: {note}"
        for outcome in found
        for note in ([f"failed: {outcome.failed.splitlines()[0]}"] if outcome.failed else []) + outcome.notes
    ]
    tables = {outcome.stage.title: outcome.rows for outcome in found if outcome.rows}
    return report.write("gpu", f"`make bench-gpu` on {args.device}", summary, notes, tables=tables)


if __name__ == "__main__":
    raise SystemExit(main())
