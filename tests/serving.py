"""A `lora-router serve` process on the real base, for tests from outside."""

import asyncio
import os
import sys
from contextlib import asynccontextmanager

from router.cli.demo import free_address


@asynccontextmanager
async def serving(folder, *more, **environment):
    """A server on a free port; yields the process and its address once it says that it is ready."""
    address = free_address()
    flags = [
        "--listen",
        address,
        "--metrics-listen=",
        "--set",
        "load_plugins=keywords,linear",
        "--threads",
        "2",
        *more,
    ]
    with (folder / "log").open("wb") as log:
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "router.cli", "serve", *flags),
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            cwd=folder,
            env=os.environ | environment,
        )
        try:
            said = ""
            while f"gRPC {address}" not in " ".join(said.split()):
                line = await asyncio.wait_for(child.stdout.readline(), 300)
                assert line, (folder / "log").read_text()
                said += line.decode()
            yield child, address
        finally:
            if child.returncode is None:
                child.kill()
            await child.wait()
