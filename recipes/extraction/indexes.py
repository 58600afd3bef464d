"""Debian's indexes of packages: fetched from the archive, read, and cut into paragraphs."""

from __future__ import annotations

import argparse
import bz2
import lzma
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path

ARCHIVE = "http://deb.debian.org/debian/dists/trixie/main/"
ENGLISH, FRENCH = "i18n/Translation-en.xz", "i18n/Translation-fr.bz2"
PACKAGES = "binary-amd64/Packages.xz"
UNPACK = {".xz": lzma.decompress, ".bz2": bz2.decompress}


def add_indexes(parser: argparse.ArgumentParser) -> None:
    """The option of where the indexes are."""
    parser.add_argument(
        "--indexes", type=Path, metavar="DIR", help="Folder with the index files. Default: fetch them."
    )


def read_index(folder: Path | None, name: str) -> str:
    """An index from a folder, else from the archive."""
    if folder is not None:
        packed = (folder / Path(name).name).read_bytes()
    else:
        with urllib.request.urlopen(ARCHIVE + name, timeout=60) as reply:
            packed = reply.read()
    return UNPACK[Path(name).suffix](packed).decode()


def stanzas(index: str) -> Iterator[dict[str, str]]:
    """The stanzas of a Debian index; lines that go on are joined by newlines."""
    for block in index.strip().split("\n\n"):
        fields = re.split(r"\n(?! )", block)
        yield {name: value.strip() for name, _, value in (field.partition(":") for field in fields)}


def sources(packages: str) -> dict[str, str]:
    """The source that each package is built from."""
    return {s["Package"]: s.get("Source", s["Package"]).split()[0] for s in stanzas(packages)}


def paragraphs(description: str) -> list[str | None]:
    """Each paragraph as one line; None for one with an indented line in it (a list, code)."""
    parts = re.split(r"\n \.(?=\n|$)", "\n" + description)
    return [None if re.search(r"\n(?! \S)", part) else " ".join(part.split()) for part in parts]
