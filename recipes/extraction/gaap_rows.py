"""More rows for financial: `python recipes/extraction/gaap_rows.py` writes data/financial.more.jsonl.gz.

financial.train holds concepts that `edgartools` files under one statement and section with some confidence.
Its table has more: concepts seen with and without "current", those of little confidence, and the names under
which it shows its own standard concepts. They are noisier, and taken only where the label is one of those
trained and no concept that stands outside the training split is much like them.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from near import Known
from rows import DATA, read_train, write

PACKAGE, TABLES = "edgar", "xbrl/standardization"
SOURCE = "edgartools 5.62.1"
MOST_WORDS = 16
SIMILARITY = 0.6
Entry = Mapping[str, Any]


def spaced(name: str) -> str:
    """AccountsPayableTrade as words."""
    return " ".join(re.findall(r"[A-Z]+(?![a-z])|[A-Z][a-z]+|[a-z]+|\d+", name))


def label_of(statement: str, section: str) -> str:
    """Balance Sheet, Current Assets."""
    return f"{spaced(statement)}, {section}"


def doubtful(concepts: Mapping[str, Entry]) -> Iterator[tuple[str, str]]:
    """Line items that the splits left out, and where the table files them."""
    for name, entry in concepts.items():
        if (entry.get("ambiguous") or entry.get("confidence", 0) < 0.4) and entry.get("section"):
            yield spaced(name), label_of(entry["statement"], entry["section"])


def shown(
    names: Mapping[str, str], members: Mapping[str, Mapping[str, list[str]]]
) -> Iterator[tuple[str, str]]:
    """The names of standard concepts, and where they stand."""
    for statement, sections in members.items():
        for section, concepts in sections.items() if not statement.startswith("_") else ():
            for concept in concepts:
                for text in {spaced(concept), names.get(concept, "")} - {""}:
                    yield text, label_of(statement, section)


def more_rows(
    train: list[dict[str, str]], concepts: Mapping[str, Entry], items: list[tuple[str, str]]
) -> list[dict[str, str]]:
    """`train`, then every item whose label is certain enough and that is like none kept for judging."""
    seen = {_key(row["x"]): row["response"] for row in train}
    kept_out = [spaced(name) for name, e in concepts.items() if _key(name) not in seen and _judges(e)]
    near = Known(kept_out, SIMILARITY)
    answers = {row["response"] for row in train}
    labels: dict[str, set[str]] = {}
    for text, label in items:
        labels.setdefault(_key(text), set()).add(label)
    rows = list(train)
    for text, label in items:
        sure = labels[_key(text)] == {label} and label in answers and len(text.split()) <= MOST_WORDS
        if sure and _key(text) not in seen and not near.near(text):
            seen[_key(text)] = label
            rows.append(_row(text, label))
    return rows


def _judges(entry: Entry) -> bool:
    return bool(entry.get("section")) and not entry.get("ambiguous") and entry.get("confidence", 0) >= 0.4


def _key(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def _row(text: str, label: str) -> dict[str, str]:
    prompt = f'Where is the line item "{text}" reported? Give the financial statement and its section.'
    return {"prompt": prompt, "response": label, "group": f"more {_key(text)}", "source": SOURCE, "x": text}


def find_tables() -> Path:
    """The tables in the installed package."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise SystemExit("The tables are not here. Install them: pip install edgartools==5.62.1")
    return Path(spec.origin).parent / TABLES


def main() -> None:
    """Write financial.more.jsonl.gz."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tables", type=Path, metavar="DIR", help="Default: the installed package's.")
    parser.add_argument("-o", "--output", type=Path, default=DATA / "financial.more.jsonl.gz", metavar="FILE")
    options = parser.parse_args()
    tables = options.tables or find_tables()
    read = {
        name: json.loads((tables / f"{name}.json").read_text("utf-8"))
        for name in ("gaap_mappings", "display_names", "section_membership")
    }
    items = [*doubtful(read["gaap_mappings"]), *shown(read["display_names"], read["section_membership"])]
    write(more_rows(read_train("financial"), read["gaap_mappings"], items), options.output)


if __name__ == "__main__":
    main()
