"""Power cuts on an ext4 file system of its own: `python -m tests.faults.power_cuts FOLDER CUTS SYNCHRONOUS`.

To be run in a mount namespace of its own (`unshare --mount`), so that nothing stays mounted. The image of the
file system lies on another one, with direct I/O between them. At a cut the outer one is frozen and the image
copied as it is at this moment: what the inner one had in its page cache is not in it, as after a power cut of
a disk that keeps what it has taken. The copy is mounted, which replays its journal, and looked at.

A process writes outcomes, default versions and audit lines meanwhile, and says what is acknowledged. Prints
what was acknowledged before the cuts, and what of it was not there afterwards, as JSON.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

INNER_MB, OUTER_MB = 48, 128


@dataclass
class Found:
    """Numbers over all cuts."""

    cuts: int = 0
    acknowledged: int = 0
    lost: int = 0
    choices_lost: int = 0
    lines_lost: int = 0
    unusable: int = 0


class Acknowledged:
    """The newest line of a child: outcomes, choices and audit lines that it was told are kept."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        self._child, self.newest, self.heard = child, (0, 0, 0), 0
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._child.stdout is not None
        for line in self._child.stdout:
            outcomes, choice, lines = map(int, line.split())
            self.newest = outcomes, choice, lines
            self.heard += 1

    def after(self, heard: int) -> None:
        """Until something was acknowledged since `heard` was this number."""
        limit = time.monotonic() + 60
        while self.heard <= heard:
            if self._child.poll() is not None or time.monotonic() > limit:
                raise RuntimeError("the writer has stopped")
            time.sleep(0.002)


def sh(command: str) -> None:
    subprocess.run(["sh", "-ec", command], check=True, capture_output=True, timeout=120)


def make_disks(folder: Path) -> Path:
    """Mounts the outer and the inner file system; returns where the image of the inner one lies."""
    outer, inner, image = folder / "outer", folder / "inner", folder / "outer/image"
    for place in (outer, inner, folder / "after"):
        place.mkdir()
    sh(f"truncate -s {OUTER_MB}M {folder}/disk && mkfs.ext4 -q -F {folder}/disk")
    sh(f"mount -o loop {folder}/disk {outer}")
    sh(f"truncate -s {INNER_MB}M {image} && mkfs.ext4 -q -F {image}")
    sh(f"mount -o loop {image} {inner}")
    sh(f"losetup --direct-io=on $(findmnt -no SOURCE {inner})")
    return image


def cut(folder: Path, image: Path, told: Acknowledged) -> tuple[int, int, int]:
    """A copy of the image at one moment; returns what had been acknowledged before that."""
    acknowledged = told.newest
    sh(f"fsfreeze -f {folder}/outer")
    try:
        sh(f"cp --sparse=always {image} {folder}/copy")
    finally:
        sh(f"fsfreeze -u {folder}/outer")
    return acknowledged


def look(folder: Path, acknowledged: tuple[int, int, int], found: Found) -> None:
    """Mount the copy and compare."""
    from benchmarks.outcome_intake import counted
    from router.access import audit

    place = folder / "after"
    outcomes, choice, lines = acknowledged
    sh(f"mount -o loop {folder}/copy {place}")
    try:
        found.lost += max(0, outcomes - counted(f"sqlite:///{place}/experiments.db"))
        chosen = json.loads((place / "state/defaults.json").read_bytes())["defaults"]["medical"]
        found.choices_lost += int(chosen) < choice
        found.lines_lost += max(0, lines - sum(1 for _ in audit.entries(place / "audit.jsonl")))
    except Exception as error:  # whatever cannot be read is what this is here to count
        print(f"not usable after the cut: {error!r}", file=sys.stderr)
        found.unusable += 1
    finally:
        sh(f"umount {place}")


def main(folder: Path, cuts: int, synchronous: str) -> int:
    image, found = make_disks(folder), Found()
    command = [sys.executable, "-m", "tests.faults.power_writer", str(folder / "inner"), synchronous]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) as child:
        told = Acknowledged(child)
        try:
            for number in range(cuts):
                told.after(told.heard)
                time.sleep(0.0137 * (number % 16))  # at another moment of a commit each time
                acknowledged = cut(folder, image, told)
                look(folder, acknowledged, found)
                found.cuts += 1
                found.acknowledged = acknowledged[0]
        finally:
            child.kill()
    shutil.rmtree(folder / "copy", ignore_errors=True)
    print(json.dumps(asdict(found)))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
