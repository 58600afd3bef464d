"""One target under atheris: `python -m tests.fuzz.guided TARGET SECONDS FOLDER TALLY`.

A fault does not end the run: it is kept, and the next input follows.
"""

from __future__ import annotations

import base64
import json
import os
import sys
import time
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.fuzz.engines import Tally

INSTRUMENTED = ("router", "tomllib")
LONGEST = 16_384  # bytes of an input


def write(tally: Tally, path: Path) -> None:
    """For the process that waits."""
    found = {
        kind: [a.seconds, a.wrong, a.trace, base64.b64encode(d).decode()]
        for kind, (a, d) in tally.found.items()
    }
    said = {"inputs": tally.inputs, "seconds": tally.seconds, "slowest": tally.slowest, "found": found}
    path.write_text(json.dumps(said))


def read(path: Path) -> Tally:
    """What `write` wrote."""
    from tests.fuzz.engines import Tally
    from tests.fuzz.targets import Attempt

    said = json.loads(path.read_text())
    found = {
        kind: (Attempt(seconds, wrong, trace), base64.b64decode(data))
        for kind, (seconds, wrong, trace, data) in said["found"].items()
    }
    return Tally(said["inputs"], said["seconds"], said["slowest"], found)


def main() -> None:
    """Run until the time is over; atheris ends the process."""
    import atheris

    with atheris.instrument_imports(include=list(INSTRUMENTED)):
        from tests.fuzz import targets
        from tests.fuzz.engines import Tally
    name, seconds, folder, said = sys.argv[1:]
    target, tally, start = targets.TARGETS[name], Tally(), time.monotonic()
    seeds = Path(folder) / "seeds"
    seeds.mkdir()
    for number, seed in enumerate(target.seeds()):
        (seeds / str(number)).write_bytes(seed)

    def one(data: bytes) -> None:
        tally.add(data, targets.tried(target, data))
        tally.seconds = time.monotonic() - start
        if tally.seconds >= float(seconds):
            write(tally, Path(said))
            os._exit(0)  # libFuzzer has no other way to be stopped from within

    def changed(data: bytes, most: int, seed: int) -> Any:
        random = Random(seed)
        made = target.change(data, random) if random.randint(0, 1) else atheris.Mutate(data, len(data) + 64)
        return made[:most]

    arguments = [sys.argv[0], str(seeds), f"-max_len={LONGEST}", "-timeout=60", "-verbosity=0"]
    atheris.Setup(arguments, one, custom_mutator=changed)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
