"""`python -m router.cli` is `lora-router`: Ctrl-C ends it quietly, also while it is being imported."""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module


def main(module: str = "router.cli.main") -> None:
    """Run `main` of a module. A signal ends the process at once while that is imported: no traceback."""
    # numpy's own threads spin while they wait, and take the cores from the engine; read when it is loaded.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    handler = signal.getsignal(signal.SIGINT)
    if handler is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    command = import_module(module).main
    signal.signal(signal.SIGINT, handler)
    sys.exit(command())


if __name__ == "__main__":
    main()
