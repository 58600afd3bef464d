"""What of faults this machine can make; a test that lacks something is skipped with its name."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest

ALONE = ("unshare", "--mount", "--propagation", "private", "sh", "-c")  # mounts end with the process
FAKETIME = "/usr/lib/*/faketime/libfaketime.so.1"


def need_tools(*names: str) -> None:
    for name in names:
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not installed")


def need_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may do this")


def need_mounts() -> None:
    """A mount namespace of one's own with a tmpfs in it."""
    need_root()
    need_tools("unshare", "mount", "nsenter")
    if not _works(*ALONE, "mount -t tmpfs -o size=64k tmpfs /tmp"):
        pytest.skip("no file system can be mounted here (CAP_SYS_ADMIN)")


def need_loop_devices() -> None:
    """ext4 in a file, mounted."""
    need_mounts()
    need_tools("mkfs.ext4", "losetup", "fsfreeze")
    if not _loops():
        pytest.skip("no ext4 on a loop device here (CONFIG_BLK_DEV_LOOP)")


@cache
def _loops() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        image, place = Path(folder) / "image", Path(folder) / "place"
        place.mkdir()
        with image.open("wb") as file:
            file.truncate(4 << 20)
        return _works("mkfs.ext4", "-q", "-F", str(image)) and _works(
            *ALONE, f"mount -o loop {image} {place}"
        )


def need_trace() -> None:
    """A process that strace may follow, and an error that it may put in."""
    need_tools("strace")
    inject = ("-o", "/dev/null", "-e", "inject=fsync:error=EIO")
    if not _works("strace", *inject, "true"):
        pytest.skip("strace may not follow processes here (CAP_SYS_PTRACE)")


def _works(*command: str) -> bool:
    done = subprocess.run(command, check=False, capture_output=True, timeout=60)
    return done.returncode == 0


def on_a_disk_of(size: str, folder: Path, command: Sequence[str] = ()) -> list[str]:
    """The beginning of a command line: what follows runs with a tmpfs of that size at `folder`, which it
    alone sees; from outside it is `inside(pid, folder)`."""
    return [*ALONE, f'mount -t tmpfs -o size={size} tmpfs {folder} && exec "$@"', "sh", *command]


def inside(pid: int, folder: Path) -> Path:
    """A folder as that process sees it."""
    return Path(f"/proc/{pid}/root{folder}")
