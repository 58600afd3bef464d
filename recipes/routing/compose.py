"""Composes calibration.jsonl, dev.jsonl and ood.jsonl from parts/: `python recipes/routing/compose.py`.

Sections of a parts file are `## LABEL` (whole requests), and for requests that are an instruction around a
text `## LABEL frames` and `## LABEL texts` or `## LABEL passage`. Every text meets a few frames, by a fixed
rotation: nothing is drawn by chance. Some texts come from splits that the adapters learn from or are
stopped by, never from their test splits; calibration has two parts files, and the second is lent other
rows than the first. Fails where two lines of the parts say nearly the same. See README.md.
"""

from __future__ import annotations

import gzip
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
LABELS = ("medical", "legal", "financial", "qa", "summarization", "translation", "code")
Row = tuple[str, str, str]  # text, label, source
Parts = dict[str, list[str]]
FILES = {"calibration": ("train", "calibration", "calibration2"), "dev": ("valid", "dev")}  # split, parts
OOD = ("ood", "ood2")  # parts
ALIKE = 0.6  # two lines that share more than this are one request in two hands
WORD = re.compile(
    r"[\u3040-\u30ff\u4e00-\u9fff]|[^\s!-/:-@\[-`{-~\u3040-\u30ff\u4e00-\u9fff]+"
)  # no spaces in CJK


@dataclass
class Lender:
    """Lends inputs of the adapters' own data, of one split. Groups to `avoid` are not lent."""

    split: str
    avoid: Set[tuple[str, str]] = frozenset()  # adapter, group
    used: set[tuple[str, str]] = field(default_factory=set)

    def texts(self, name: str, count: int, key: str = "x") -> list[str]:
        """`count` inputs, evenly spread over the data of adapter `name`."""
        path = HERE.parent / "data" / f"{name}.{self.split}.jsonl.gz"
        with gzip.open(path, "rt", encoding="utf-8") as file:
            records = [json.loads(line) for line in file]
        free = [record for record in records if (name, record["group"]) not in self.avoid]
        chosen = free[:: len(free) // count][:count]
        self.used.update((name, record["group"]) for record in chosen)
        return [str(record[key]) for record in chosen]


def read_parts(path: Path) -> Parts:
    """Lines of each section; `\\n` in a line stands for a line break."""
    parts: Parts = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            section = parts.setdefault(line[3:], [])
        elif line.strip():
            section.append(line.replace("\\n", "\n"))
    return parts


def composed(name: str) -> list[Row]:
    """All requests of calibration or dev. A later part shares no group of lent rows with the parts before."""
    split, *files = FILES[name]
    lender = Lender(split)
    found: list[Row] = []
    for file in files:
        found += rows(read_parts(HERE / "parts" / f"{file}.txt"), lender)
        lender = Lender(split, avoid=lender.used, used=lender.used)
    return found


def rows(parts: Parts, lender: Lender) -> Iterator[Row]:
    """All requests of one parts file, with those around the texts that `lender` gives."""
    for label in (*LABELS, "none"):
        for text in parts.get(label, ()):
            yield text, "" if label == "none" else label, "written"
    yield from passages(parts, lender)
    for label in ("summarization", "translation"):
        frames, texts = parts[f"{label} frames"], parts[f"{label} texts"]
        yield from around(frames, texts, label, "written", each=2)
    topics = [text for domain in ("medical", "legal", "financial") for text in parts[domain][::4]]
    yield from around(parts["translation frames"], topics, "translation", "domain-text", each=1)
    yield from around(
        parts["summarization frames"], lender.texts("summarization", 24), "summarization", "lent"
    )
    yield from around(parts["summarization frames"], lender.texts("legal", 8), "summarization", "domain-text")
    for label in LABELS:
        for prompt in lender.texts(label, 6, key="prompt"):
            yield prompt, label, "own-prompt"


def passages(parts: Parts, lender: Lender) -> Iterator[Row]:
    """A passage with a question, and the same to be summarized, so that the passage decides nothing."""
    frames = parts["qa frames"]
    written = [line.split("||| ") for line in parts["qa passage"]]
    for i, (passage, *questions) in enumerate(written):
        for k, question in enumerate(questions):
            frame = frames[(2 * i + 5 * k) % len(frames)]
            yield frame.format(passage=passage, question=question), "qa", "passage"
    for i, prompt in enumerate(lender.texts("qa", 24, key="prompt")):
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


def write(path: Path, found: Sequence[Row]) -> None:
    """One JSON object a line; a text that came up twice stands once."""
    unique = {text: (label, source) for text, label, source in reversed(found)}
    lines = [
        json.dumps({"text": text, "label": label, "source": source}, ensure_ascii=False)
        for text, (label, source) in reversed(unique.items())
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_ood(path: Path, files: Sequence[Parts]) -> None:
    """Requests for no adapter; of each kind in a parts file every second one is kept for evaluation."""
    lines = [
        json.dumps(
            {"text": text, "label": "", "source": kind, "split": ("calibration", "evaluation")[i % 2]},
            ensure_ascii=False,
        )
        for parts in files
        for kind, texts in parts.items()
        for i, text in enumerate(texts)
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def words(text: str) -> list[str]:
    """Lower-case words; single characters of Chinese and Japanese; the marks where there are only marks."""
    return WORD.findall(text.lower()) or text.split()


def same_words(texts: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Pairs whose words overlap: more than `ALIKE` of the words of either stand in both (Jaccard)."""
    bags = [set(words(text)) for text in texts]
    often = Counter(word for bag in bags for word in bag)
    holders: dict[str, list[int]] = {}
    for i, bag in enumerate(bags):
        rarest = sorted(bag, key=lambda word: (often[word], word))
        # Sets that are so alike share one of these, so that not every pair has to be looked at.
        telling = rarest[: len(bag) - math.ceil(ALIKE * len(bag)) + 1]
        for j in sorted({j for word in telling for j in holders.get(word, ())}):
            if len(bag & bags[j]) > ALIKE * len(bag | bags[j]):
                yield texts[j], texts[i]
        for word in telling:
            holders.setdefault(word, []).append(i)


def same_runs(texts: Sequence[str], length: int = 5) -> Iterator[tuple[str, str]]:
    """Pairs of which one repeats the other: more than `ALIKE` of the shorter one's runs of `length` words."""
    split = [words(text) for text in texts]
    runs = [{tuple(each[k : k + length]) for k in range(len(each) - length + 1)} for each in split]
    holders: dict[tuple[str, ...], list[int]] = {}
    for i, own in enumerate(runs):
        shared = Counter(j for run in own for j in holders.get(run, ()))
        for j, count in sorted(shared.items()):
            if count > ALIKE * min(len(own), len(runs[j])):
                yield texts[j], texts[i]
        for run in own:
            holders.setdefault(run, []).append(i)


def written(parts: Parts) -> list[str]:
    """All lines but the frames, which are made to resemble each other."""
    return [text for kind, texts in parts.items() if not kind.endswith(" frames") for text in texts]


def check(texts: Sequence[str]) -> None:
    """Raises ValueError, with both texts of each pair, where two say nearly the same."""
    found = dict.fromkeys([*same_words(texts), *same_runs(texts)])
    if found:
        raise ValueError("nearly the same:\n" + "\n".join(f"  {one!r}\n  {other!r}" for one, other in found))


if __name__ == "__main__":
    read = {path.stem: read_parts(path) for path in sorted((HERE / "parts").glob("*.txt"))}
    check([text for parts in read.values() for text in written(parts)])
    write_ood(HERE / "ood.jsonl", [read[name] for name in OOD])
    for name in FILES:
        write(HERE / f"{name}.jsonl", composed(name))
