"""Commands in processes of their own, below everything else on the machine.

`python -m router.extensions.improve.processes WORDS` is `lora-router WORDS` with the lowest priority for
processor and disk, and a bound on its memory. It ends, as by Ctrl-C, when its parent is gone.
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
from dataclasses import dataclass
from pathlib import Path

from router.errors import FailedPrecondition

NICE = 19
WATCHED_SECONDS = 2.0
MEMORY, PARENT = "LORA_ROUTER_IMPROVE_MEMORY_MB", "LORA_ROUTER_IMPROVE_PARENT"
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
    command = [sys.executable, "-m", "router.extensions.improve.processes", *words]
    if ionice := shutil.which("ionice"):
        command = [ionice, "-c", "3", *command]
    threads = str(limits.threads or max(1, (os.cpu_count() or 2) - 1))
    environment = os.environ | {MEMORY: str(limits.memory_mb), PARENT: str(os.getpid())}
    environment |= {"OMP_NUM_THREADS": threads, "LORA_ROUTER_THREADS": threads}
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
            process.wait()
            raise
        if process.returncode:
            lines.seek(began)
            said = [line for line in lines.read().splitlines() if line.strip()][-TAIL:]
            raise FailedPrecondition(
                f"`lora-router {words[0]} {words[1]}` failed: {' '.join(said) or 'see above'}"
            )
    return printed


def _lower() -> None:
    """The lowest priority and a bound on memory, for this process."""
    os.nice(NICE - os.nice(0))
    most = int(os.environ.get(MEMORY, "0")) << 20
    if most:
        resource.setrlimit(resource.RLIMIT_DATA, (most, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def _watch(parent: int) -> None:
    """End as by Ctrl-C when the parent is gone."""
    while os.getppid() == parent:
        time.sleep(WATCHED_SECONDS)
    os.kill(os.getpid(), signal.SIGINT)


def main() -> None:
    """`lora-router`, lowered."""
    _lower()
    if parent := int(os.environ.get(PARENT, "0")):
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    from router.cli.main import main as command

    command()


if __name__ == "__main__":
    main()
