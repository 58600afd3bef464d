"""Composes calibration.jsonl, dev.jsonl and ood.jsonl from parts/: `python recipes/routing/compose.py`.

Sections of a parts file are `## LABEL` (whole requests), `## LABEL exam` (a stem, then its options), and for
requests that are an instruction around a text `## LABEL frames` and `## LABEL texts` or `## LABEL passage`
(then its questions), also of a second kind: `## legal notice frames` and `## legal notice texts`. Every text
meets a few frames, by a fixed rotation: nothing is drawn by chance. Some texts come from splits that the
adapters learn from or are stopped by, never from their test splits; calibration has several parts files, and
a later one is lent other rows than those before. A row that has become an adapter's example or a line of the
background is left out, with all that are about the same text. Fails where two lines of the parts say nearly
the same, and where a request repeats one of the held-out test (heldout.py). See README.md.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

from heldout import REPEATED, HeldOut, words

HERE = Path(__file__).parent
RECIPES = HERE.parent
LABELS = ("medical", "legal", "financial", "qa", "summarization", "translation", "code")
Row = tuple[str, str, str, str]  # text, label, source, what it is about
Parts = dict[str, list[str]]
PART = "||| "  # between a stem and its options, a passage and its questions
OPTIONS = ("\n{A}. ", "\n({a}) ", " {a}) ", "\n{n}. ", "\n{A}: ", " [{A}] ", "\n- ", "\n{n}) ", "\n{A}) ")
OOD = ("ood", "ood2", "ood3")  # parts
ALIKE = 0.6  # two lines that share more than this are one request in two hands


@dataclass(frozen=True)
class Mix:
    """How much of one parts file meets what."""

    each: int = 2  # frames around each text
    topics: int = 4  # every how many-th domain request is also translated
    passages: int = 3  # every how many-th passage is also summarized
    lent: int = 24  # texts that summarization and question answering are lent, each
    own: int = 6  # prompts that each adapter is lent


FILES = {  # split, parts
    "calibration": (
        "train",
        {
            "calibration": Mix(),
            "calibration2": Mix(),
            "calibration3": Mix(each=3, topics=4, passages=1, lent=60, own=20),
        },
    ),
    "dev": ("valid", {"dev": Mix()}),
}


@dataclass
class Lender:
    """Lends inputs of the adapters' own data, of one split. Groups to `avoid` are not lent, nor what repeats
    a row of the test."""

    split: str
    heldout: HeldOut
    avoid: Set[tuple[str, str]] = frozenset()  # adapter, group
    used: set[tuple[str, str]] = field(default_factory=set)

    def texts(self, name: str, count: int, key: str = "x") -> list[str]:
        """`count` inputs, evenly spread over the data of adapter `name`."""
        path = RECIPES / "data" / f"{name}.{self.split}.jsonl.gz"
        with gzip.open(path, "rt", encoding="utf-8") as file:
            records = [json.loads(line) for line in file]
        free = [record for record in records if (name, record["group"]) not in self.avoid]
        chosen = free[:: len(free) // count][:count]
        self.used.update((name, record["group"]) for record in chosen)
        lent = [str(record[key]) for record in chosen]
        return [text for text in lent if self.heldout.repeated(text) < REPEATED]


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
    split, files = FILES[name]
    heldout = HeldOut.read()
    lender = Lender(split, heldout)
    found: list[Row] = []
    for file, mix in files.items():
        found += rows(read_parts(HERE / "parts" / f"{file}.txt"), lender, mix)
        lender = Lender(split, heldout, avoid=lender.used, used=lender.used)
    gone = taught_texts(found, taught())
    return [row for row in found if row[3] not in gone]


def taught() -> set[str]:
    """All that classifiers learn from: the adapters' examples and the background."""
    texts = set((RECIPES.parent / "plugins" / "background.txt").read_text(encoding="utf-8").splitlines())
    for path in RECIPES.glob("*.toml"):
        routing = tomllib.loads(path.read_text(encoding="utf-8")).get("routing")
        if routing is None:  # like another recipe, which says it
            continue
        texts.update(routing["examples"], routing["negative_examples"])
    return texts


def taught_texts(found: Iterable[Row], taught: Set[str]) -> set[str]:
    """What those rows are about that are taught: nothing about the same text is asked then."""
    return {about for text, _, _, about in found if text in taught}


def rows(parts: Parts, lender: Lender, mix: Mix) -> Iterator[Row]:
    """All requests of one parts file, with those around the texts that `lender` gives."""
    for label in (*LABELS, "none"):
        for text in parts.get(label, ()):
            yield text, "" if label == "none" else label, "written", text
    for label in LABELS:
        yield from exam(parts.get(f"{label} exam", ()), label)
    yield from passages(parts, lender, mix)
    for kind in kinds(parts, " texts"):
        yield from around(
            parts[f"{kind} frames"], parts[f"{kind} texts"], kind.split()[0], "written", mix.each
        )
    topics = [text for domain in ("medical", "legal", "financial") for text in parts[domain][:: mix.topics]]
    yield from around(parts["translation frames"], topics, "translation", "domain-text")
    frames = parts["summarization frames"]
    yield from around(frames, lender.texts("summarization", mix.lent), "summarization", "lent")
    yield from around(frames, lender.texts("legal", mix.lent // 3), "summarization", "domain-text")
    for label in LABELS:
        for prompt in lender.texts(label, mix.own, key="prompt"):
            yield prompt, label, "own-prompt", prompt


def kinds(parts: Parts, ending: str) -> list[str]:
    """What stands before `ending` in the names of sections: a label, or a label and a word."""
    return [section.removesuffix(ending) for section in parts if section.endswith(ending)]


def exam(lines: Sequence[str], label: str) -> Iterator[Row]:
    """Each stem with its options, marked in many ways, and without them where it is a question by itself."""
    for i, line in enumerate(lines):
        stem, *options = line.split(PART)
        turned = options[i % len(options) :] + options[: i % len(options)]
        mark = OPTIONS[i % len(OPTIONS)]
        marked = [
            mark.format(A="ABCDEF"[k], a="abcdef"[k], n=k + 1) + option for k, option in enumerate(turned)
        ]
        yield stem + "".join(marked), label, "exam", stem
        if stem.endswith("?") and not re.search(r"\b(following|these)\b", stem):
            yield stem, label, "exam", stem


def passages(parts: Parts, lender: Lender, mix: Mix) -> Iterator[Row]:
    """A passage with a question, and the same to be summarized, so that the passage decides nothing.

    For code the passage is the tables or the markup that is asked about.
    """
    for kind in kinds(parts, " passage"):
        label = kind.split()[0]
        for i, line in enumerate(parts[f"{kind} passage"]):
            passage, *questions = line.split(PART)
            for k, question in enumerate(questions):
                frames = parts[f"{kind} frames"]
                frame = frames[(2 * i + 5 * k) % len(frames)]
                text = frame.format(passage=passage, question=question)
                yield text, label, "passage" if label == "qa" else "schema", passage
    frames = parts["qa frames"]
    for i, prompt in enumerate(lender.texts("qa", mix.lent, key="prompt")):
        passage, question = prompt.split("Passage: ", 1)[1].split("\n\nQuestion: ")
        frame = frames[i % len(frames)]
        yield frame.format(passage=passage, question=question.rstrip("?")), "qa", "lent-passage", passage
    told = [line.split(PART)[0] for line in parts["qa passage"]][:: mix.passages]
    yield from around(parts["summarization frames"], told, "summarization", "passage")


def around(
    frames: Sequence[str], texts: Sequence[str], label: str, source: str, each: int = 1
) -> Iterator[Row]:
    """Every text in `each` frames, which rotate so that all frames are met."""
    for i, text in enumerate(texts):
        for k in range(each):
            yield frames[(i * each + 7 * k) % len(frames)].replace("{text}", text), label, source, text


def write(path: Path, found: Sequence[Row]) -> None:
    """One JSON object a line; a text that came up twice stands once. Rows about one text are a group."""
    unique = {text: (label, source, about) for text, label, source, about in reversed(found)}
    often = Counter(about for _, _, about in unique.values())
    lines = []
    for text, (label, source, about) in reversed(unique.items()):
        row = {"text": text, "label": label, "source": source}
        if often[about] > 1:
            row["group"] = hashlib.sha256(about.encode()).hexdigest()[:12]
        lines.append(json.dumps(row, ensure_ascii=False))
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


def check_heldout(texts: Iterable[str], heldout: HeldOut) -> None:
    """Raises ValueError, with the texts and their shares, where some repeat a row of the test."""
    found = [(heldout.repeated(text), text) for text in texts]
    repeats = [f"  {share:.2f} {text!r}" for share, text in found if share >= REPEATED]
    if repeats:
        raise ValueError("nearly a row of the held-out test, write others:\n" + "\n".join(repeats))


if __name__ == "__main__":
    read = {path.stem: read_parts(path) for path in sorted((HERE / "parts").glob("*.txt"))}
    check([text for parts in read.values() for text in written(parts)])
    made = {name: composed(name) for name in FILES}
    strange = [read[name] for name in OOD]
    check_heldout([text for rows_ in made.values() for text, *_ in rows_], HeldOut.read())
    check_heldout([text for parts in strange for texts in parts.values() for text in texts], HeldOut.read())
    write_ood(HERE / "ood.jsonl", strange)
    for name, found in made.items():
        write(HERE / f"{name}.jsonl", found)
