"""Words that the project does not use, each with the word to use instead: `python -m tests.words`.

Prints file, line and the word to use, and exits with 1 where one is found.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("router", "plugins", "proto", "tests", "benchmarks", "docs", "examples", "deploy")
SUFFIXES = {".py", ".proto", ".md", ".html", ".js", ".sh", ".cpp", ".h", ".yaml", ".yml", ".toml"}
LEFT_OUT = ("benchmarks/results/", "tests/words.py", "tests/test_words.py")

WORDS = {
    r"crews?": "members, or controller",
    r"errands?": "auxiliary requests",
    r"rosters?": "fleet plan",
    r"whoever": "the caller, the owner, or anyone who",
    r"what comes of (?:it|that|this|them)": "the result",
}
NAMES = {  # of classes; a name stands for one thing in the project
    "Asked": "the kind of request, such as DemoRequest",
    "Desk": "Dispatcher",
    "Door": "Endpoint",
    "Errand": "AuxiliaryRequest",
    "Holds": "ColumnType",
    "Insight": "ConsoleContext",
    "Journey": "InflightRequest",
    "Keeper": "Controller, or the kind of cache",
    "Knowledge": "CatalogView",
    "Lane": "ClassifierExecutor",
    "Lesson": "LabelledRequest",
    "Lessons": "TrainingSet",
    "Messenger": "EventDispatcher",
    "Notes": "PersistentCache",
    "Panel": "ClassifierChain",
    "Roster": "FleetPlan",
    "Said": "the kind of request or value, such as CorrectionRequest",
    "Shelf": "AdaptersFolder",
    "Sight": "Visibility",
    "Strangers": "BackgroundNegatives",
    "Told": "the kind of answer or event",
    "Torn": "ConnectionLost",
}
_WORDS = [(re.compile(rf"\b{word}\b", re.IGNORECASE), instead) for word, instead in WORDS.items()]
_CLASS = re.compile(rf"\bclass _?({'|'.join(NAMES)})\b[(:]")


def found_in(text: str, code: bool) -> Iterator[tuple[int, str, str]]:
    """Line number, word and what to use instead, of every word in `text` that the project does not use.

    Names of classes count in `code`; documentation may name classes of its readers.
    """
    for number, line in enumerate(text.splitlines(), 1):
        for pattern, instead in _WORDS:
            for match in pattern.finditer(line):
                yield number, match[0], instead
        if code and (match := _CLASS.search(line)):
            yield number, f"class {match[1]}", NAMES[match[1]]


def sources(root: Path = ROOT) -> Iterator[Path]:
    """Files of code and documentation that people write. Stubs of protos are generated, and left out."""
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*")):
            name = path.relative_to(root).as_posix()
            if path.suffix in SUFFIXES and path.is_file() and not name.startswith(LEFT_OUT):
                yield path
    yield from sorted(root.glob("*.md"))


def main() -> int:
    """Exit code 1 if a word is found."""
    bad = 0
    for path in sources():
        for number, word, instead in found_in(path.read_text(encoding="utf-8"), path.suffix == ".py"):
            print(f"{path.relative_to(ROOT)}:{number}: {word!r}: use {instead}", file=sys.stderr)
            bad += 1
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
