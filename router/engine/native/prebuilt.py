"""Native operations built ahead, one library for each instruction set, for machines that have no compiler.

`python -m router.engine.native.prebuilt FOLDER [LEVEL...]` builds them. A library fits any CPU that has its
level, and only the very torch, Python and sources that it was built with: its name says which, so that any
other is not found instead of being loaded.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from router.engine.native.build import (
    LEVELS,
    NotBuilt,
    cache_key,
    check_tools,
    compile_library,
    compiler_flags,
    cpu_levels,
    import_library,
    sha256_of,
)

log = logging.getLogger(__name__)


def file_of(folder: Path, level: str) -> Path:
    """Where the library of a level belongs."""
    return folder / f"lora_router_native_{cache_key(level, portable=True)[:16]}.so"


def load_best(folder: Path, levels: Sequence[str]) -> tuple[str, ModuleType]:
    """The first of `levels` (best first) that was built ahead, and its module. Raises NotBuilt."""
    for level in levels:
        library = file_of(folder, level)
        if library.stem in sys.modules:
            return level, sys.modules[library.stem]
        if library.exists():
            return level, _load(library, level)
    raise NotBuilt("none were built ahead for this torch, Python and CPU", folder)


def _load(library: Path, level: str) -> ModuleType:
    """A library that was cut would kill the process, so its bytes are compared first."""
    proof = library.with_suffix(".sha256")
    try:
        if proof.read_text() != sha256_of(library):
            raise NotBuilt(f"those built ahead for {level} are damaged", library)
        return import_library(library)
    except (OSError, ImportError) as error:
        raise NotBuilt(f"those built ahead for {level} cannot be loaded", error) from error


def build(folder: Path, levels: Sequence[str] = tuple(LEVELS)) -> list[Path]:
    """Compile those that are not there yet, some 20 s each; returns all of them. Raises NotBuilt.

    Every library is loaded once to see that it can be, but for levels that this CPU does not have.
    """
    check_tools()
    folder.mkdir(parents=True, exist_ok=True)
    return [_built(file_of(folder, level), level) for level in levels]


def _built(library: Path, level: str) -> Path:
    proof = library.with_suffix(".sha256")
    if library.exists() and proof.exists() and proof.read_text() == sha256_of(library):
        return library
    log.info("building the native operations for %s", level)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder, library.name)
        try:
            compile_library(library.stem, folder, compiler_flags(level, portable=True))
        except NotBuilt:
            if level in cpu_levels() or not made.exists():
                raise
        proof.write_text(sha256_of(made))
        made.replace(library)
    return library


def main(folder: str, *levels: str) -> None:
    """Build into FOLDER, for all levels or those named."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if unknown := [level for level in levels if level not in LEVELS]:
        sys.exit(f"no level {unknown[0]!r}; known: {', '.join(LEVELS)}")
    try:
        made = build(Path(folder), levels or tuple(LEVELS))
    except NotBuilt as error:
        sys.exit(f"{error} ({error.detail})")
    for library in made:
        log.info("%s", library)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(*sys.argv[1:])
