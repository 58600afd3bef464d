"""Training and comparison in processes of their own, with the lowest priority."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence

from router.errors import FailedPrecondition

NICE = 19
TAIL = 3  # lines of a failed command that are shown


def run_command(words: Sequence[str], *, shown: bool = False) -> str:
    """Run `lora-router WORDS` and return what it prints. `shown`: its progress stands on the terminal.

    It leaves one core to others. Ctrl-C is passed on once; the command then ends as it does by itself, and
    this raises KeyboardInterrupt. Raises FailedPrecondition where it fails.
    """
    threads = str(max(1, (os.cpu_count() or 2) - 1))
    process = subprocess.Popen(
        ["nice", "-n", str(NICE), sys.executable, "-m", "router.cli", *words],
        stdout=subprocess.PIPE,
        stderr=None if shown else subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": threads, "LORA_ROUTER_THREADS": threads},
        text=True,
        start_new_session=True,  # so that Ctrl-C comes once, from here
    )
    try:
        printed, said = process.communicate()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)
        process.communicate()
        raise
    if process.returncode:
        last = [line for line in (said or "").splitlines() if line.strip()][-TAIL:]
        raise FailedPrecondition(
            f"`lora-router {words[0]} {words[1]}` failed: {' '.join(last) or 'see above'}"
        )
    return printed
