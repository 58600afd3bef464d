"""Composes calibration.jsonl, dev.jsonl and ood.jsonl from parts/: `python recipes/routing/compose.py`.

Sections of a parts file are `## LABEL` (whole requests), and for requests that are an instruction around a
text `## LABEL frames` and `## LABEL texts` or `## LABEL passage`. Every text meets a few frames, by a fixed
rotation: nothing is drawn by chance. Some texts come from splits that the adapters learn from or are
stopped by, never from their test splits. See README.md.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

HERE = Path(__file__).parent
LABELS = ("medical", "legal", "financial", "qa", "summarization", "translation", "code")
Row = tuple[str, str, str]  # text, label, source
Parts = dict[str, list[str]]


def read_parts(path: Path) -> Parts:
    """Lines of each section; `\\n` in a line stands for a line break."""
    parts: Parts = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            parts[line[3:]] = section = []
        elif line.strip():
            section.append(line.replace("\\n", "\n"))
    return parts


def rows(parts: Parts, data: str) -> Iterator[Row]:
    """All requests of one file. `data` is the split of recipes/data that lends texts: train or valid."""
    for label in (*LABELS, "none"):
        for text in parts.get(label, ()):
            yield text, "" if label == "none" else label, "written"
    yield from passages(parts, data)
    for label in ("summarization", "translation"):
        frames, texts = parts[f"{label} frames"], parts[f"{label} texts"]
        yield from around(frames, texts, label, "written", each=2)
    topics = [text for domain in ("medical", "legal", "financial") for text in parts[domain][::4]]
    yield from around(parts["translation frames"], topics, "translation", "domain-text", each=1)
    yield from around(parts["summarization frames"], lent("summarization", data, 24), "summarization", "lent")
    yield from around(parts["summarization frames"], lent("legal", data, 8), "summarization", "domain-text")
    for label in LABELS:
        for prompt in lent(label, data, 6, field="prompt"):
            yield prompt, label, "own-prompt"


def passages(parts: Parts, data: str) -> Iterator[Row]:
    """A passage with a question, and the same to be summarized, so that the passage decides nothing."""
    frames = parts["qa frames"]
    written = [line.split("||| ") for line in parts["qa passage"]]
    for i, (passage, *questions) in enumerate(written):
        for k, question in enumerate(questions):
            frame = frames[(2 * i + 5 * k) % len(frames)]
            yield frame.format(passage=passage, question=question), "qa", "passage"
    for i, prompt in enumerate(lent("qa", data, 24, field="prompt")):
        passage, question = prompt.split("Passage: ", 1)[1].split("\n\nQuestion: ")
        frame = frames[i % len(frames)]
        yield frame.format(passage=passage, question=question.rstrip("?")), "qa", "lent-passage"
    yield from around(
        parts["summarization frames"], [p for p, *_ in written][::3], "summarization", "passage"
    )


def around(
    frames: Sequence[str], texts: Sequence[str], label: str, source: str, each: int = 1
) -> Iterator[Row]:
    """Every text in `each` frames, which rotate so that all frames are met."""
    for i, text in enumerate(texts):
        for k in range(each):
            yield frames[(i * each + 7 * k) % len(frames)].replace("{text}", text), label, source


def lent(name: str, split: str, count: int, field: str = "x") -> list[str]:
    """Evenly spread inputs of an adapter's own data."""
    with gzip.open(HERE.parent / "data" / f"{name}.{split}.jsonl.gz", "rt", encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    step = len(records) // count
    return [str(records[i * step][field]) for i in range(count)]


def write(path: Path, found: Sequence[Row]) -> None:
    """One JSON object a line; a text that came up twice stands once."""
    unique = {text: (label, source) for text, label, source in reversed(found)}
    lines = [
        json.dumps({"text": text, "label": label, "source": source}, ensure_ascii=False)
        for text, (label, source) in reversed(unique.items())
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_ood(path: Path, parts: Parts) -> None:
    """Requests for no adapter; of each kind every second one is kept for evaluation."""
    lines = [
        json.dumps(
            {"text": text, "label": "", "source": kind, "split": ("calibration", "evaluation")[i % 2]},
            ensure_ascii=False,
        )
        for kind, texts in parts.items()
        for i, text in enumerate(texts)
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_ood(HERE / "ood.jsonl", read_parts(HERE / "parts" / "ood.txt"))
    for name, split in (("calibration", "train"), ("dev", "valid")):
        write(HERE / f"{name}.jsonl", list(rows(read_parts(HERE / "parts" / f"{name}.txt"), split)))
