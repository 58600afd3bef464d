"""A `lora-router serve` process on the real base, for tests from outside."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.addresses import free_address


@contextmanager
def serving(folder: Path, *more: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server on a free port; yields the process and its address once it says that it is ready.

    Where tests change nothing that others see, a fixture of the module keeps one for all of them.
    """
    address = free_address()
    flags = ["--listen", address, "--metrics-listen=", "--set", "load_plugins=examples"]
    with (folder / "log").open("wb") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "router.cli", "serve", *flags, "--set=threads=1", *more],
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=folder,
            env=os.environ | environment,
            text=True,
        )
        assert child.stdout is not None
        try:
            said = ""
            while f"gRPC {address}" not in " ".join(said.split()):
                line = child.stdout.readline()
                assert line, (folder / "log").read_text()
                said += line
            yield child, address
        finally:
            child.kill()
            child.communicate()
