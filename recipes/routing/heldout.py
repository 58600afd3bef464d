"""Rows that nearly repeat a row of the held-out test, which is known here by hashes alone.

`python recipes/routing/heldout.py FILE...` reads the test's rows (JSON lines with a "text") and writes
heldout.txt: for each row the hashes of its runs of words, so that the repository has no row of the test and
still refuses one that repeats it. compose.py asks `repeated`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

KEPT = Path(__file__).with_name("heldout.txt")
RUN = 3  # words; one word changed in a question of ten leaves five of its eight runs
BYTES = 5  # of a hash: of a million runs looked up among 30,000, one is found by chance in 40 tries
REPEATED = 0.5  # of the shorter text's runs: from here on a row repeats one of the test
WORD = re.compile(
    r"[\u3040-\u30ff\u4e00-\u9fff]|[^\s!-/:-@\[-`{-~\u3040-\u30ff\u4e00-\u9fff]+"
)  # no spaces in CJK


def words(text: str) -> list[str]:
    """Lower-case words; single characters of Chinese and Japanese; the marks where there are only marks."""
    return WORD.findall(text.lower()) or text.split()


def runs(text: str) -> set[bytes]:
    """Hashes of all runs of words; of the whole where it is shorter than one."""
    found = words(unicodedata.normalize("NFKC", text))
    count = max(1, len(found) - RUN + 1)
    return {_hash(" ".join(found[i : i + RUN])) for i in range(count)}


def _hash(run: str) -> bytes:
    return hashlib.blake2b(run.encode("utf-8", "surrogatepass"), digest_size=BYTES).digest()


class HeldOut:
    """The runs of each row of the test."""

    def __init__(self, rows: Iterable[set[bytes]]) -> None:
        self._rows = list(rows)
        self._holders: defaultdict[bytes, list[int]] = defaultdict(list)
        for i, row in enumerate(self._rows):
            for run in row:
                self._holders[run].append(i)

    @classmethod
    def read(cls, path: Path = KEPT) -> HeldOut:
        """From the lines that `written` made."""
        lines = path.read_text(encoding="ascii").splitlines()
        return cls(_cut(base64.b64decode(line)) for line in lines)

    def __len__(self) -> int:
        return len(self._rows)

    def repeated(self, text: str) -> float:
        """The largest share of runs in [0, 1] that this text and a row of the test have in common, of those
        of the shorter one."""
        own = runs(text)
        shared = Counter(i for run in own for i in self._holders.get(run, ()))
        return max((n / min(len(own), len(self._rows[i])) for i, n in shared.items()), default=0.0)


def written(texts: Iterable[str]) -> Iterator[str]:
    """A line for each text. In the order of the lines: that of the test is nobody's business."""
    yield from sorted(base64.b64encode(b"".join(sorted(runs(text)))).decode() for text in texts)


def _cut(joined: bytes) -> set[bytes]:
    return {joined[i : i + BYTES] for i in range(0, len(joined), BYTES)}


if __name__ == "__main__":
    read = [line for name in sys.argv[1:] for line in Path(name).read_text(encoding="utf-8").splitlines()]
    if not read:
        raise SystemExit("name the files of the test: JSON lines, each with a text")
    KEPT.write_text("\n".join(written(json.loads(line)["text"] for line in read)) + "\n", encoding="ascii")
    print(f"{len(read)} rows, {KEPT.stat().st_size} bytes in {KEPT}")
