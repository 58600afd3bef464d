"""Power cuts on an ext4 file system of its own: `python -m tests.faults.power_cuts FOLDER CUTS WHAT CARE`.

To be run in a mount namespace of its own (`unshare --mount`), so that nothing stays mounted. The image of the
file system lies on another one, with direct I/O between them. At a cut the outer one is frozen and the image
copied as it is at this moment: what the inner one had in its page cache is not in it, as after a power cut of
a disk that keeps what it has taken. The copy is mounted, which replays its journal, and looked at.

`power_writer` writes meanwhile, and says what is acknowledged. Prints what was acknowledged at the last cut,
and how many cuts lost some of it, as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.faults.power_writer import DATABASE, LINES

INNER_MB, OUTER_MB = 48, 128


@dataclass
class Found:
    """Numbers over all cuts; `unusable` cuts left something that cannot be read at all."""

    cuts: int = 0
    acknowledged: int = 0
    lossy: int = 0
    unusable: int = 0


class Acknowledged:
    """The newest number of the writer, and how often it said one."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        self._child, self.newest, self.heard = child, 0, 0
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._child.stdout is not None
        for line in self._child.stdout:
            self.newest = int(line)
            self.heard += 1

    def wait(self) -> None:
        """Until something more is acknowledged."""
        heard, limit = self.heard, time.monotonic() + 60
        while self.heard == heard:
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


def cut(folder: Path, image: Path, told: Acknowledged) -> int:
    """A copy of the image at one moment; returns what had been acknowledged before that."""
    acknowledged = told.newest
    sh(f"fsfreeze -f {folder}/outer")
    try:
        sh(f"cp --sparse=always {image} {folder}/copy")
    finally:
        sh(f"fsfreeze -u {folder}/outer")
    return acknowledged


def kept(what: str, folder: Path) -> int:
    """As the writer counts."""
    if what == "choices":
        return int(
            json.loads((folder / "state/defaults.json").read_bytes())["defaults"]["medical"]["version"]
        )
    if what == "audit":
        from tests.audited import entries

        return sum(1 for _ in entries(folder / LINES))
    from benchmarks.outcome_intake import counted

    return counted(f"sqlite:///{folder}/{DATABASE}")


def look(what: str, folder: Path, acknowledged: int, found: Found) -> None:
    """Mount the copy and compare."""
    place = folder / "after"
    sh(f"mount -o loop {folder}/copy {place}")
    try:
        found.lossy += kept(what, place) < acknowledged
    except Exception as error:  # whatever cannot be read is what this is here to count
        print(f"not usable after the cut: {error!r}", file=sys.stderr)
        found.unusable += 1
    finally:
        sh(f"umount {place}")
    found.cuts += 1
    found.acknowledged = acknowledged


def main(folder: Path, cuts: int, what: str, care: str) -> None:
    image, found = make_disks(folder), Found()
    command = [sys.executable, "-m", "tests.faults.power_writer", str(folder / "inner"), what, care]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        told = Acknowledged(child)
        try:
            for number in range(cuts):
                told.wait()
                time.sleep(0.0137 * (number % 16))  # at another moment of a commit each time
                look(what, folder, cut(folder, image, told), found)
        finally:
            child.kill()
    print(json.dumps(asdict(found)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
