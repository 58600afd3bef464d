"""More rows for summarization: `python recipes/extraction/debian_rows.py` writes summarization.more.jsonl.gz.

summarization.train holds 3,000 of the descriptions in Debian trixie/main. More come from the same indexes
by the same rules: 25 to 110 words, a synopsis of 3 to 11 words that does not stand in the text, one package
of a source. Only sources that the hash of the splits gives to training are taken, and no text much like one
of another source. The archive moves with its point releases, so a later run gives other rows: the file in
data is what was trained on.
"""

from __future__ import annotations

import argparse
import lzma
import random
import re
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from near import Known, for_training
from rows import DATA, read_train, write

ARCHIVE = "http://deb.debian.org/debian/dists/trixie/main/"
TEXTS, PACKAGES = "i18n/Translation-en.xz", "binary-amd64/Packages.xz"
PROMPT = "Summarize this software description in one short line.\n\n"
WORDS, SYNOPSIS = range(25, 111), range(3, 12)


@dataclass(frozen=True)
class Description:
    """A package's text, its synopsis and the source it is built from."""

    package: str
    source: str
    text: str
    synopsis: str

    def usable(self) -> bool:
        """Whether the lengths fit and the synopsis is not simply copied."""
        fits = len(self.text.split()) in WORDS and len(self.synopsis.split()) in SYNOPSIS
        return fits and self.synopsis.lower() not in self.text.lower()


def stanzas(index: str) -> Iterator[dict[str, str]]:
    """The stanzas of a Debian index; lines that go on are joined by newlines."""
    for block in index.strip().split("\n\n"):
        fields = re.split(r"\n(?! )", block)
        yield {name: value.strip() for name, _, value in (field.partition(":") for field in fields)}


def descriptions(texts: str, packages: str) -> Iterator[Description]:
    """Every described package whose source is known, in the order of the index."""
    source = {s["Package"]: s.get("Source", s["Package"]).split()[0] for s in stanzas(packages)}
    for stanza in stanzas(texts):
        synopsis, _, text = stanza.get("Description-en", "").partition("\n")
        package = stanza["Package"]
        if package in source:
            yield Description(package, source[package], running_text(text), synopsis)


def running_text(description: str) -> str:
    """Paragraphs as one line; one with an indented line in it (a list, code) is left out."""
    paragraphs = re.split(r"\n \.(?=\n|$)", "\n" + description)
    running = [text for text in paragraphs if not re.search(r"\n(?! \S)", text)]
    return " ".join(" ".join(running).split())


def more_rows(
    train: list[dict[str, str]], found: list[Description], rows: int, seed: int
) -> list[dict[str, str]]:
    """`train`, then one row each of further sources until there are so many."""
    rng = random.Random(seed)
    usable = [item for item in found if item.usable()]
    kept_out = Known(item.text for item in usable if not for_training(item.source))
    seen = {text for row in train for text in (row["group"], row["x"])}
    packages: defaultdict[str, list[Description]] = defaultdict(list)
    for item in usable:
        packages[item.source].append(item)
    more = list(train)
    for source in rng.sample(sorted(packages), len(packages)):
        item = rng.choice(packages[source])
        new = for_training(source) and not {source, item.text} & seen
        if new and len(more) < rows and not kept_out.near(item.text):
            seen.add(item.text)
            more.append(_row(item))
    return more


def _row(item: Description) -> dict[str, str]:
    row = {"prompt": PROMPT + item.text, "response": item.synopsis, "group": item.source}
    return row | {"source": "Debian trixie Translation-en", "x": item.text, "pkg": item.package}


def read_index(folder: Path | None, name: str) -> str:
    """An index from a folder, else from the archive."""
    if folder is not None:
        packed = (folder / Path(name).name).read_bytes()
    else:
        with urllib.request.urlopen(ARCHIVE + name, timeout=60) as reply:
            packed = reply.read()
    return lzma.decompress(packed).decode()


def main() -> None:
    """Write summarization.more.jsonl.gz."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--indexes", type=Path, metavar="DIR", help="Folder with the two files. Default: fetch them."
    )
    parser.add_argument("--rows", type=int, default=6000, metavar="N", help="Rows in all.")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument(
        "-o", "--output", type=Path, default=DATA / "summarization.more.jsonl.gz", metavar="FILE"
    )
    options = parser.parse_args()
    found = list(descriptions(read_index(options.indexes, TEXTS), read_index(options.indexes, PACKAGES)))
    rows = more_rows(read_train("summarization"), found, options.rows, options.seed)
    write(rows, options.output)


if __name__ == "__main__":
    main()
