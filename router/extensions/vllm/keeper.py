"""Ends processes that a killed server leaves behind: it reads from a pipe, and acts when the pipe is closed.

vLLM's processes outlive a server that was killed. `python keeper.py` reads lines from its standard input,
`process PID`, `file PATH` and `folder PATH`; at the end of input it kills those processes, if they are still
the same, removes those files and folders, and closes its standard output. It leaves the server's process tree
at once, so a signal to the whole tree does not end it. Standard library only: it starts in no time and needs
no more than a few megabytes.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

SHARED = "/dev/shm/"  # noqa: S108 - of the kernel, and only compared with


def begun(pid: int) -> str:
    """When a process began, in the kernel's words: tells it from a later one of its number. '' if gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    fields = stat.rpartition(")")[2].split()
    return "" if fields[0] == "Z" else fields[19]


def children_of(pid: int) -> list[int]:
    """All descendants of a process."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (parent := _parent(int(entry.name))):
            parents.setdefault(parent, []).append(int(entry.name))
    found, left = [], [pid]
    while left:
        below = parents.get(left.pop(), [])
        found += below
        left += below
    return found


def shared_files(pid: int) -> set[str]:
    """The files of shared memory that a process has mapped.

    They are found by inode: a semaphore is mapped under another name than it has afterwards.
    """
    try:
        maps = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="replace")
        inodes = {int(line.split()[4]) for line in maps.splitlines() if SHARED in line}
        return {entry.path for entry in os.scandir(SHARED) if entry.inode() in inodes}
    except OSError:
        return set()


def _parent(pid: int) -> int:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    return int(stat.rpartition(")")[2].split()[1])


def end(processes: Mapping[int, str], by: int = signal.SIGKILL) -> None:
    """Kill those that began at that time, or ask them to end."""
    for pid, start in processes.items():
        if start and begun(pid) == start:
            try:
                os.kill(pid, by)
            except OSError:
                continue  # it has ended meanwhile, or is not ours


def main(lines: Iterable[str]) -> None:
    """Remember the lines until the end of input, then act."""
    processes: dict[int, str] = {}
    folders: list[str] = []
    files: list[str] = []
    for line in lines:
        what, _, value = line.rstrip("\n").partition(" ")
        if what == "process":
            processes[int(value)] = begun(int(value))
        elif what == "file":
            files.append(value)
        elif what == "folder":
            folders.append(value)
    end(processes)
    for file in files:
        Path(file).unlink(missing_ok=True)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # it goes when the server has gone
        signal.signal(number, signal.SIG_IGN)
    if os.fork():  # the child goes on, and its parent is not the server
        os._exit(0)
    main(sys.stdin)
