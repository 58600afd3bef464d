"""`python -m router.cli` is `lora-router`: Ctrl-C ends it quietly, also while it is being imported."""

from __future__ import annotations

import signal
import sys
from importlib import import_module


def main(module: str = "router.cli.main") -> None:
    """Run `main` of a module. A signal ends the process at once while that is imported: no traceback."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    command = import_module(module).main
    signal.signal(signal.SIGINT, handler)
    sys.exit(command())


if __name__ == "__main__":
    main()
