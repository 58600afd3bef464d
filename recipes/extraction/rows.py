"""Rows in and out: what a split for training holds, and the larger one that is made of it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

DATA = Path(__file__).parent.parent / "data"


def read_train(name: str) -> list[dict[str, str]]:
    """The rows of NAME.train."""
    with gzip.open(DATA / f"{name}.train.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def write(rows: list[dict[str, str]], output: Path) -> None:
    """The same bytes for the same rows; says how many there are."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    output.write_bytes(gzip.compress(text.encode(), mtime=0))
    print(f"{len(rows)} rows: {output}")
