"""Compiles and imports the module once, in a process of its own: python compile.py NAME FOLDER FLAG...

Environment, output and a crash of the compiler or of the new module stay out of the server.
"""

from __future__ import annotations

import sys
from pathlib import Path


def main(name: str, folder: str, *flags: str) -> None:
    """Leave FOLDER/NAME.so; anything that goes wrong ends in an exception."""
    from torch.utils.cpp_extension import load

    sources = sorted(str(source) for source in (Path(__file__).parent / "src").glob("*.cpp"))
    load(name, sources, extra_cflags=list(flags), build_directory=folder, verbose=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
