"""More rows for translation: `python recipes/extraction/translation_rows.py` writes them.

translation.train holds 4,000 of the synopses that the Debian Description Translation Project has put into
French. The others of trixie/main come first here, by the same rules: 3 to 14 words, two of a source at most,
no transitional packages. With `--paragraphs N`, so many paragraphs of the long descriptions follow that seem
to say the same in both languages (PARAGRAPHS in their `source`). Only sources that the hash of the splits
gives to training are taken, and nothing much like a text of another source in either language.
"""

from __future__ import annotations

import argparse
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from indexes import ENGLISH, FRENCH, PACKAGES, add_indexes, paragraphs, read_index, sources, stanzas
from near import Known, for_training
from rows import DATA, read_train, write

SYNOPSES = "Debian trixie Translation-fr (DDTP)"
PARAGRAPHS = f"{SYNOPSES}, paragraph"
PROMPT = "Translate to French: "
WORDS, LONGEST = range(3, 15), 200  # words of a synopsis; characters of a paragraph
LONGER = (0.7, 2.0)  # what French paragraphs have of the English one's length
DOT = "\u22c5"  # by which some translators show a space that does not break
TRANSITIONAL = re.compile(r"transition(al)?\b.*\bpackage|dummy package", re.I)


@dataclass(frozen=True)
class Pair:
    """A text in both languages and the source of the package that it describes."""

    source: str
    english: str
    french: str

    def usable_synopsis(self) -> bool:
        """Whether it has the usual length, is translated at all and tells of more than a new name."""
        lengths = all(len(text.split()) in WORDS for text in (self.english, self.french))
        return lengths and self._translated() and not TRANSITIONAL.search(self.english)

    def usable_paragraph(self) -> bool:
        """Whether it is short running text with as many sentences and the same numbers in French."""
        running = all(re.match(r"\w.*\.$", text) for text in (self.english, self.french))
        short = WORDS.start <= len(self.english.split()) and len(self.english) <= LONGEST
        return running and short and self._translated() and self._parallel()

    def _translated(self) -> bool:
        return self.english.lower() != self.french.lower()

    def _parallel(self) -> bool:
        longer = LONGER[0] <= len(self.french) / len(self.english) <= LONGER[1]
        return longer and _shape(self.english) == _shape(self.french)


def _shape(text: str) -> tuple[int, list[str]]:
    """How many sentences, and which numbers."""
    return len(re.findall(r"[.!?](?= |$)", text)), sorted(re.findall(r"\d+", text))


def descriptions(english: str, french: str, packages: str) -> Iterator[Pair]:
    """Whole descriptions that stand in both indexes, of packages whose source is known."""
    source = sources(packages)
    translated = {s["Description-md5"]: s.get("Description-fr", "") for s in stanzas(french)}
    for stanza in stanzas(english):
        text = translated.get(stanza["Description-md5"])
        if text and stanza["Package"] in source:
            yield Pair(source[stanza["Package"]], stanza["Description-en"], text.replace(DOT, " "))


def synopses(found: Iterable[Pair]) -> Iterator[Pair]:
    """The first lines."""
    for item in found:
        lines = (text.partition("\n")[0] for text in (item.english, item.french))
        yield Pair(item.source, *(" ".join(line.split()) for line in lines))


def running_paragraphs(found: Iterable[Pair]) -> Iterator[Pair]:
    """Paragraphs that are no list in either language, of descriptions with as many in both."""
    for item in found:
        english, french = (paragraphs(text.partition("\n")[2]) for text in (item.english, item.french))
        if len(english) == len(french):
            for one, other in zip(english, french, strict=True):
                if one and other:
                    yield Pair(item.source, one, other)


class Selection:
    """Rows of training sources, each text once, far from every text of the other sources."""

    def __init__(self, train: list[dict[str, str]], others: Iterable[Pair]) -> None:
        kept_out = [pair for pair in others if not for_training(pair.source)]
        self._english = Known(pair.english for pair in kept_out)
        self._french = Known(pair.french for pair in kept_out)
        self._seen = {row["x"].lower() for row in train}

    def take(self, found: Iterable[Pair], per_source: Counter[str], most: int) -> Iterator[Pair]:
        """Of `found`, in its order, up to `most` of a source; `per_source` are those it has already."""
        for pair in found:
            free = for_training(pair.source) and per_source[pair.source] < most
            if free and pair.english.lower() not in self._seen and not self._near(pair):
                self._seen.add(pair.english.lower())
                per_source[pair.source] += 1
                yield pair

    def _near(self, pair: Pair) -> bool:
        return self._english.near(pair.english) or self._french.near(pair.french)


def more_rows(
    train: list[dict[str, str]], found: list[Pair], rows_of_paragraphs: int, seed: int
) -> list[dict[str, str]]:
    """`train`, then the further synopses, then so many paragraphs, one of a source."""
    rng = random.Random(seed)
    lines, texts = list(synopses(found)), list(running_paragraphs(found))
    selection = Selection(train, lines + texts)
    lines = [pair for pair in lines if pair.usable_synopsis()]
    texts = [pair for pair in texts if pair.usable_paragraph()]
    taken = Counter(row["group"] for row in train)
    more = list(selection.take(rng.sample(lines, len(lines)), taken, most=2))
    short = islice(selection.take(rng.sample(texts, len(texts)), Counter(), most=1), rows_of_paragraphs)
    return train + [_row(pair, SYNOPSES) for pair in more] + [_row(pair, PARAGRAPHS) for pair in short]


def _row(pair: Pair, origin: str) -> dict[str, str]:
    row = {"prompt": PROMPT + pair.english, "response": pair.french, "group": pair.source}
    return row | {"source": origin, "x": pair.english}


def main() -> None:
    """Write translation.more.jsonl.gz."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_indexes(parser)
    parser.add_argument("--paragraphs", type=int, default=0, metavar="N", help="Rows of paragraphs.")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument(
        "-o", "--output", type=Path, default=DATA / "translation.more.jsonl.gz", metavar="FILE"
    )
    options = parser.parse_args()
    english, french, packages = (read_index(options.indexes, name) for name in (ENGLISH, FRENCH, PACKAGES))
    found = list(descriptions(english, french, packages))
    write(more_rows(read_train("translation"), found, options.paragraphs, options.seed), options.output)


if __name__ == "__main__":
    main()
