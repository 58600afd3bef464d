"""More rows for summarization: `python recipes/extraction/debian_rows.py` writes summarization.more.jsonl.gz.

summarization.train holds 3,000 of the descriptions in Debian trixie/main. More come from the same indexes
by the same rules: 25 to 110 words, a synopsis of 3 to 11 words that does not stand in the text, one package
of a source. Only sources that the hash of the splits gives to training are taken, and no text much like one
of another source. The archive moves with its point releases, so a later run gives other rows: the file in
data is what was trained on.
"""

from __future__ import annotations

import argparse
import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from indexes import ENGLISH, PACKAGES, add_indexes, paragraphs, read_index, sources, stanzas
from near import Known, for_training
from rows import DATA, read_train, write

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


def descriptions(texts: str, packages: str) -> Iterator[Description]:
    """Every described package whose source is known, in the order of the index."""
    source = sources(packages)
    for stanza in stanzas(texts):
        synopsis, _, text = stanza.get("Description-en", "").partition("\n")
        package = stanza["Package"]
        if package in source:
            yield Description(package, source[package], running_text(text), synopsis)


def running_text(description: str) -> str:
    """The paragraphs as one line, without lists and code."""
    return " ".join(text for text in paragraphs(description) if text)


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


def main() -> None:
    """Write summarization.more.jsonl.gz."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_indexes(parser)
    parser.add_argument("--rows", type=int, default=6000, metavar="N", help="Rows in all.")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument(
        "-o", "--output", type=Path, default=DATA / "summarization.more.jsonl.gz", metavar="FILE"
    )
    options = parser.parse_args()
    found = list(descriptions(read_index(options.indexes, ENGLISH), read_index(options.indexes, PACKAGES)))
    rows = more_rows(read_train("summarization"), found, options.rows, options.seed)
    write(rows, options.output)


if __name__ == "__main__":
    main()
