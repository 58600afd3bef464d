"""More rows for qa: `python recipes/extraction/qa_rows.py` writes data/qa.more.jsonl.gz.

qa.train holds 3,000 questions on passages of SQuAD's development set, three of four of them disfluent; the
other two splits have fluent ones only. More fluent ones come from three files of the same package,
BIG-bench 1.0.0: what question_selection has left, the questions of SQuAD 1.1 on the passages that the hash of
the splits gives to training (Rajpurkar et al. 2016; those that the disfluent ones were made from are among
them), and the questions of SquadShifts on newer Wikipedia passages (Miller et al. 2020, The Effect of Natural
Distribution Shift on Question Answering Models). Nothing is taken that is much like a passage or question
outside training. Rows are the same for the same seed.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import tarfile
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from near import Known, for_training
from rows import DATA, read_train, write

SDIST = (
    "https://files.pythonhosted.org/packages/95/f8/"
    "c019b3579df548a04cac12342cfcb878e50ddf6cfcd7fddba8cfc721c157/bigbench-1.0.0.tar.gz"
)
TASKS = "bigbench-1.0.0/bigbench/benchmark_tasks/"
SELECTION = "question_selection/task.json"
SQUAD, WIKI = "squad_shifts/squaddev_v1.1.json", "squad_shifts/new_wiki_v1.0.json"
SOURCES = {  # in the order they are taken in
    SELECTION: "bigbench 1.0.0 question_selection (SQuAD)",
    SQUAD: "bigbench 1.0.0 squad_shifts squaddev (SQuAD 1.1)",
    WIKI: "bigbench 1.0.0 squad_shifts new_wiki (SquadShifts)",
}
PROMPT = "Answer the question from the passage.\n\nPassage: {}\n\nQuestion: {}"
PASSAGE, QUESTION, ANSWER = range(25, 151), range(4, 26), range(1, 7)  # words
PIECES = re.compile(r"[0-9]|[A-Za-z]{1,7}|[^\s0-9A-Za-z]")  # about as many as the base has tokens
LONGEST = 215  # pieces of a passage: a table of figures has more tokens than its words tell
FIRST_FOR_TRAINING = 0.35  # qa has larger splits for validation (from 0.25) and test than other adapters
GROUP = 120  # characters of a passage that name it
ABBREVIATED = re.compile(r"(?:\b(?:[A-Z]|Mr|Mrs|Ms|Dr|St|Jr|Sr|Gen|Col|Lt|No|vs|etc|ca|cf|e\.g|i\.e|al))\.$")


@dataclass(frozen=True)
class Asked:
    """A question on a passage, what its writer marked as the answer there, and from which character."""

    file: str
    passage: str
    question: str
    answer: str
    start: int

    @property
    def group(self) -> str:
        """The name of the passage, as in the splits."""
        return plain(self.passage)[:GROUP]

    @property
    def outside(self) -> bool:
        """Whether the hash of the splits keeps the passage from training; no split has newer passages."""
        return self.file != WIKI and not for_training(self.group, FIRST_FOR_TRAINING)

    def usable(self) -> bool:
        """Whether it is one whole question with a short answer that stands in the passage."""
        lengths = len(self.question.split()) in QUESTION and len(self.answer.split()) in ANSWER
        stands = self.start >= 0 and self.passage.startswith(self.answer, self.start)
        return lengths and stands and self.question.endswith("?") and "\\displaystyle" not in self.passage


def plain(text: str) -> str:
    """Words and numbers of ASCII only, in small letters."""
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


def selected(task: dict[str, Any]) -> Iterator[Asked]:
    """The right questions of question_selection."""
    for example in task["examples"]:
        answer, _, passage = example["input"].removeprefix("Short Answer: ").partition(" Context: ")
        question = max(example["target_scores"], key=example["target_scores"].__getitem__)
        yield Asked(SELECTION, passage, question, answer, passage.find(answer))


def marked(file: str, squad: dict[str, Any]) -> Iterator[Asked]:
    """The questions of a file in SQuAD's form where another reader marked about the same."""
    for article in squad["data"]:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                first, *others = question["answers"]
                if any(agree(first["text"], other["text"]) for other in others):
                    text = re.sub(r" +\?$", "?", " ".join(question["question"].split()))
                    answer, start = first["text"].rstrip(), first["answer_start"]
                    yield Asked(file, paragraph["context"], text, answer, start)


def agree(one: str, two: str) -> bool:
    """Whether one answer stands in the other."""
    one, two = (f" {plain(text)} " for text in (one, two))
    return one in two or two in one


def sentences(passage: str) -> list[tuple[int, int]]:
    """Where the sentences of a passage start and end."""
    spans, start = [], 0
    for found in re.finditer(r"[.!?][\"'”’)\]]*\s+(?=[\"'“‘(\[]?[A-Z0-9])", passage):
        if not ABBREVIATED.search(passage[start : found.start() + 1]):
            spans.append((start, found.end()))
            start = found.end()
    return [*spans, (start, len(passage))]


def window(asked: Asked, rng: random.Random) -> str | None:
    """The passage, or where it is too long the sentences around the answer, as many as fit.

    They are added before or after by chance, so that the place of the answer tells nothing.
    """
    spans = sentences(asked.passage)
    end = asked.start + len(asked.answer)
    first = next(at for at, span in enumerate(spans) if asked.start < span[1])
    last = next(at for at, span in enumerate(spans) if end <= span[1])

    def text(first: int, last: int) -> str:
        return " ".join(asked.passage[spans[first][0] : spans[last][1]].split())

    if _fits(text(0, len(spans) - 1)):
        return text(0, len(spans) - 1)
    grown = True
    while grown:
        wider = [(first - 1, last)] * (first > 0) + [(first, last + 1)] * (last + 1 < len(spans))
        wider = [(a, b) for a, b in wider if _fits(text(a, b))]
        grown = bool(wider)
        if grown:
            first, last = rng.choice(wider)
    cut = text(first, last)
    return cut if _fits(cut) and len(cut.split()) in PASSAGE else None


def _fits(text: str) -> bool:
    return len(text.split()) < PASSAGE.stop and len(PIECES.findall(text)) <= LONGEST


def more_rows(
    train: list[dict[str, str]], found: list[Asked], rows: int, passage: int, seed: int
) -> list[dict[str, str]]:
    """`train`, then further questions until there are so many; at most so many on a passage of a file.

    The order of the files is that of SOURCES. Of the same passage and answer there is one question, but all
    that question_selection has.
    """
    rng = random.Random(seed)
    outside = [asked for asked in found if asked.outside]
    passages = Known(asked.passage for asked in outside)
    questions = Known(asked.question for asked in outside)
    answered = {(row["group"], plain(row["response"])) for row in train}
    count: Counter[tuple[str, str]] = Counter()
    seen = {(row["group"], plain(row["prompt"].rpartition("\n\nQuestion: ")[2])) for row in train}
    near: dict[str, bool] = {}
    more: list[dict[str, str]] = []
    order = list(SOURCES)
    for asked in sorted(rng.sample(found, len(found)), key=lambda asked: order.index(asked.file)):
        if len(train) + len(more) >= rows:
            break
        key, answer = (asked.file, asked.group), (asked.group, plain(asked.answer))
        question = (asked.group, plain(asked.question))
        if asked.file == SELECTION:
            wanted = question not in seen
        else:
            wanted = question not in seen and answer not in answered and count[key] < passage
        if asked.outside or not (wanted and answer[1] and asked.usable()):
            continue
        if asked.group not in near:
            near[asked.group] = passages.near(asked.passage)
        text = None if near[asked.group] or questions.near(asked.question) else window(asked, rng)
        if text is not None and asked.answer in text:
            count[key] += 1
            answered.add(answer)
            seen.add(question)
            more.append(_row(asked, text, rng))
    # Rows of a passage side by side: the file is half as large.
    return train + sorted(more, key=lambda row: row["group"])


def _row(asked: Asked, passage: str, rng: random.Random) -> dict[str, str]:
    # Those of question_selection are in small letters, as people type; half of the others become so.
    question = asked.question
    if asked.file != SELECTION and rng.random() < 0.5:
        question = question[0] + question[1:].lower()
    prompt = PROMPT.format(passage, question)
    return {
        "prompt": prompt,
        "response": asked.answer,
        "group": asked.group,
        "source": SOURCES[asked.file],
    }


def read_tasks(packed: BinaryIO) -> dict[str, Any]:
    """The files that are read, out of the package as it streams by."""
    tasks: dict[str, Any] = {}
    with tarfile.open(fileobj=packed, mode="r|gz") as members:
        for member in members:
            file = member.name.removeprefix(TASKS)
            content = members.extractfile(member) if file in SOURCES else None
            if content is not None:
                tasks[file] = json.load(content)
            if len(tasks) == len(SOURCES):
                break
    return tasks


def main() -> None:
    """Write qa.more.jsonl.gz."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sdist", type=Path, metavar="FILE", help="bigbench-1.0.0.tar.gz. Default: fetch it (358 MB)."
    )
    parser.add_argument("--rows", type=int, default=9000, metavar="N", help="Rows in all.")
    parser.add_argument("--passage", type=int, default=3, metavar="N", help="Rows a passage of a file.")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("-o", "--output", type=Path, default=DATA / "qa.more.jsonl.gz", metavar="FILE")
    options = parser.parse_args()
    place = options.sdist.resolve().as_uri() if options.sdist else SDIST
    with urllib.request.urlopen(place, timeout=60) as packed:
        tasks = read_tasks(packed)
    found = list(selected(tasks[SELECTION]))
    found += [asked for file in (SQUAD, WIKI) for asked in marked(file, tasks[file])]
    rows = more_rows(read_train("qa"), found, options.rows, options.passage, options.seed)
    write(rows, options.output)


if __name__ == "__main__":
    main()
