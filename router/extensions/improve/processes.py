"""Commands in processes of their own, below everything else on the machine.

`python -m router.extensions.improve.processes MB PID WORDS` is `lora-router WORDS` with the lowest priority
for processor and disk, and at most so much memory. It ends, as by Ctrl-C, when its parent PID is gone.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from router.errors import FailedPrecondition

NICE = 19
AUTOGROUP = Path("/proc/self/autogroup")
WATCHED_SECONDS = 2.0
MODULE = "router.extensions.improve.processes"
TAIL = 3  # lines of a failed command that are shown


@dataclass(frozen=True, slots=True)
class Limits:
    """What a command may take of the machine. `threads` 0: all cores but one, at least one."""

    memory_mb: int = 8192
    threads: int = 0


def run_command(words: Sequence[str], limits: Limits, log: Path, *, shown: bool = True) -> str:
    """Run `lora-router WORDS` and return what it prints. `shown`: its progress stands on the terminal.

    Else that goes to the file `log`. Ctrl-C is passed on once; the command then ends as it does by itself,
    and this raises KeyboardInterrupt. Raises FailedPrecondition where it fails.
    """
    command = [sys.executable, "-m", MODULE, str(limits.memory_mb), str(os.getpid()), *words]
    if ionice := shutil.which("ionice"):
        command = [ionice, "-c", "3", *command]
    threads = str(limits.threads or max(1, (os.cpu_count() or 2) - 1))
    environment = os.environ | {"OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE"}
    environment["LORA_ROUTER_THREADS"] = threads
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a+", encoding="utf-8") as lines:
        lines.write(f"$ lora-router {' '.join(words)}\n")
        lines.flush()
        began = lines.tell()
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=None if shown else lines,
            env=environment,
            text=True,
            start_new_session=True,  # so that Ctrl-C comes once, from here
        )
        try:
            printed, _ = process.communicate()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
            process.communicate()
            raise
        if process.returncode:
            lines.seek(began)
            said = [line for line in lines.read().splitlines() if line.strip()][-TAIL:]
            raise FailedPrecondition(
                f"`lora-router {words[0]} {words[1]}` failed: {' '.join(said) or 'see above'}"
            )
    return printed


def lower(memory_mb: int) -> None:
    """The lowest priority and a bound on memory, for this process."""
    os.nice(NICE - os.nice(0))
    if os.getsid(0) == os.getpid():
        # Linux may share the processor between sessions first (sched_autogroup): nice alone counts inside
        # this one, which is a session of its own.
        with suppress(OSError):
            AUTOGROUP.write_text(str(NICE))
    resource.setrlimit(resource.RLIMIT_DATA, (memory_mb << 20, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def _watch(parent: int) -> None:
    """End as by Ctrl-C when the parent is gone."""
    while os.getppid() == parent:
        time.sleep(WATCHED_SECONDS)
    os.kill(os.getpid(), signal.SIGINT)


def main() -> None:
    """`lora-router`, lowered."""
    lower(int(sys.argv[1]))
    threading.Thread(target=_watch, args=(int(sys.argv[2]),), daemon=True).start()
    del sys.argv[1:3]
    from router.cli.main import main as command

    command()


if __name__ == "__main__":
    main()
