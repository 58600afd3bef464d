"""More training rows for medical: `python recipes/extraction/icd_rows.py` writes data/medical.more.jsonl.gz.

medical.train holds at most 4 inclusion terms of a part of ICD-10-CM's categories. The classification has
more terms, and titles of codes; they come from `simple-icd-10-cm` (`pip install simple-icd-10-cm==1.5.0`).
Only categories that the hash of the splits gives to training are read, so none of the validation or test
split gets in, and a term much like an inclusion term of any other category is left out. Rows are the same
for the same seed.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import re
import xml.etree.ElementTree as ET
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from near import Known, for_training
from rows import DATA, read_train, write

PACKAGE, TABULAR = "simple_icd_10_cm", "data/icd10c-tabular-April-1-2026.xml"
SOURCE = "simple-icd-10-cm 1.5.0"
LONGEST_CODE = len("H74.01")  # longer codes repeat a title with side or encounter


@dataclass(frozen=True)
class Term:
    """A text filed under a category (three characters) of a chapter; `kind`: inclusion or title."""

    text: str
    category: str
    chapter: str
    kind: str


def read_terms(tabular: Path) -> Iterator[Term]:
    """Inclusion terms and titles, in the order of the tabular list."""
    for chapter in ET.parse(tabular).getroot().iter("chapter"):
        name = re.sub(r" \([A-Z0-9-]+\)$", "", chapter.findtext("desc", ""))
        for entry in chapter.iter("diag"):
            code = entry.findtext("name", "")
            if len(code) <= LONGEST_CODE:
                yield Term(entry.findtext("desc", ""), code[:3], name, "title")
            for note in entry.findall("inclusionTerm/note"):
                yield Term(note.text or "", code[:3], name, "inclusion")


def more_rows(
    train: list[dict[str, str]], terms: list[Term], inclusions: int, titles: int, seed: int
) -> list[dict[str, str]]:
    """`train`, then up to so many further terms of each category that is for training."""
    rng = random.Random(seed)
    own = {term.category for term in terms if for_training(term.category)}
    other = Known(term.text for term in terms if term.category not in own and term.kind == "inclusion")
    chapters: defaultdict[str, set[str]] = defaultdict(set)
    for term in terms:
        chapters[term.text.lower()].add(term.chapter)
    seen = {row["x"].lower() for row in train}
    answers = {row["response"] for row in train}
    left: defaultdict[tuple[str, str], int] = defaultdict(int)
    limit = {"inclusion": inclusions, "title": titles}
    rows = list(train)
    for term in rng.sample(terms, len(terms)):
        key, text = (term.category, term.kind), term.text.lower()
        fits = term.category in own and term.chapter in answers and len(chapters[text]) == 1
        if not fits or text in seen or left[key] >= limit[term.kind] or other.near(term.text):
            continue
        seen.add(text)
        left[key] += 1
        rows.append(_row(term))
    return rows


def _row(term: Term) -> dict[str, str]:
    prompt = f'Which ICD-10-CM chapter does this diagnosis belong to: "{term.text}"?'
    return {
        "prompt": prompt,
        "response": term.chapter,
        "group": term.category,
        "source": SOURCE,
        "x": term.text,
    }


def find_tabular() -> Path:
    """The tabular list in the installed package."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise SystemExit("The tabular list is not here. Install it: pip install simple-icd-10-cm==1.5.0")
    return Path(spec.origin).parent / TABULAR


def main() -> None:
    """Write medical.more.jsonl.gz."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--tabular", type=Path, metavar="FILE", help="The XML file. Default: the installed package's."
    )
    parser.add_argument(
        "--inclusions", type=int, default=8, metavar="N", help="Further inclusion terms a category."
    )
    parser.add_argument("--titles", type=int, default=4, metavar="N", help="Titles of codes a category.")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("-o", "--output", type=Path, default=DATA / "medical.more.jsonl.gz", metavar="FILE")
    options = parser.parse_args()
    terms = list(read_terms(options.tabular or find_tabular()))
    rows = more_rows(read_train("medical"), terms, options.inclusions, options.titles, options.seed)
    write(rows, options.output)


if __name__ == "__main__":
    main()
