"""Diagnoses as clinicians note them down: `python recipes/extraction/shorthand_rows.py`.

`medical` learned the terms of ICD-10-CM as they are printed. In practice people write "fx", "w/o" and words
cut short, and it is wrong about these in nearly half of all cases. This writes such rows to
data/medical.shorthand.jsonl.gz: terms that are in no split, of categories that are for training, far from
those of validation and test, with their words shortened by rules. The benchmark of `adapters improve` uses
them. Needs `pip install simple-icd-10-cm==1.5.0`.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from icd_rows import SOURCE, Term, find_tabular, read_terms
from near import Known, for_training
from rows import DATA, write

SHORT = {
    "abdominal": "abd", "abnormal": "abn", "acute": "ac", "anemia": "anem", "associated": "assoc",
    "bilateral": "bilat", "bleeding": "bldg", "blood": "bld", "central nervous system": "CNS",
    "chronic": "chr", "complication": "compl", "complications": "compl", "congenital": "cong",
    "deficiency": "def", "degree": "deg", "dependence": "dep", "diabetes mellitus": "DM", "disease": "dz",
    "diseases": "dz", "dislocation": "disloc", "disorder": "d/o", "disorders": "d/o", "displaced": "displ",
    "due to": "d/t", "elsewhere classified": "EC", "extremity": "ext", "failure": "fail",
    "foreign body": "FB", "fracture": "fx", "gastrointestinal": "GI", "gestational": "gest",
    "heart failure": "CHF", "hemorrhage": "hem", "history": "hx", "hypertension": "HTN", "induced": "ind",
    "infarction": "infrc", "infection": "inf", "inflammation": "inflam", "injury": "inj",
    "insufficiency": "insuff", "joint": "jt", "kidney": "kid", "laceration": "lac", "left": "L",
    "lower": "low", "malignant neoplasm": "CA", "maternal": "mat", "moderate": "mod", "muscle": "musc",
    "myocardial infarction": "MI", "neoplasm": "neo", "newborn": "nb", "nondisplaced": "nondisp",
    "not elsewhere classified": "NEC", "obstruction": "obst", "occlusion": "occl", "osteoarthritis": "OA",
    "other": "oth", "other specified": "oth spec", "pain": "px", "pneumonia": "PNA", "poisoning": "pois",
    "pregnancy": "preg", "primary": "prim", "pulmonary": "pulm", "renal": "ren", "respiratory": "resp",
    "rheumatoid arthritis": "RA", "right": "R", "secondary": "sec", "secondary to": "2/2", "severe": "sev",
    "shoulder": "shldr", "specified": "spec", "stenosis": "sten", "subluxation": "sublux",
    "symptoms": "sx", "syndrome": "synd", "tendon": "tend", "thrombosis": "thromb", "trimester": "tri",
    "tuberculosis": "TB", "type": "ty", "ulcer": "ulc", "unspecified": "unsp", "upper": "up",
    "urinary tract": "UT", "with": "w/", "without": "w/o",
}  # fmt: skip
LONGEST = 8  # letters; a longer word is cut to CUT
CUT = 5
FEWEST = 6  # characters of a note
ROWS = 2600
WHOLE = re.compile(rf"\b({'|'.join(sorted(map(re.escape, SHORT), key=len, reverse=True))})\b", re.IGNORECASE)
LEFT_OUT = re.compile(r"\b(of|the|and|in|to|by|for|or|a|an)\b ?|\[[^]]*\]|[(),;]", re.IGNORECASE)


def shorthand(text: str) -> str:
    """A term as a note.

    >>> shorthand("Unspecified fracture of left shoulder, with dislocation")
    'unsp fx l shldr w/ disloc'
    """
    words = LEFT_OUT.sub(" ", WHOLE.sub(lambda found: SHORT[found[1].lower()], text)).split()
    return " ".join(w[:CUT] if len(w) > LONGEST and w.isalpha() else w for w in words).lower()


def rows_of(terms: list[Term], known: list[dict[str, str]], seed: int) -> Iterator[dict[str, str]]:
    """Rows in random order; `known` are those of all splits."""
    own = {term.category for term in terms if for_training(term.category)}
    answers = {row["response"] for row in known}
    other = Known(
        [term.text for term in terms if term.category not in own and term.kind == "inclusion"]
        + [row["x"] for row in known if not for_training(row["group"])]
    )
    chapters: defaultdict[str, set[str]] = defaultdict(set)
    for term in terms:
        chapters[shorthand(term.text)].add(term.chapter)
    seen = {row["x"].lower() for row in known}
    for term in random.Random(seed).sample(terms, len(terms)):
        note, text = shorthand(term.text), term.text.lower()
        fits = term.category in own and term.chapter in answers and len(chapters[note]) == 1
        if not fits or {text, note} & seen or len(note) < FEWEST or other.near(term.text):
            continue
        seen |= {text, note}
        yield {
            "prompt": f'Which ICD-10-CM chapter does this diagnosis belong to: "{note}"?',
            "response": term.chapter,
            "group": term.category,
            "source": SOURCE,
            "x": term.text,
        }


def main() -> None:
    """Write medical.shorthand.jsonl.gz."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tabular", type=Path, metavar="FILE", help="The XML file. Default: the package's.")
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument(
        "-o", "--output", type=Path, default=DATA / "medical.shorthand.jsonl.gz", metavar="FILE"
    )
    options = parser.parse_args()
    terms = list(read_terms(options.tabular or find_tabular()))
    known: list[dict[str, str]] = []
    for split in ("more", "valid", "test"):
        with gzip.open(DATA / f"medical.{split}.jsonl.gz", "rt", encoding="utf-8") as lines:
            known += map(json.loads, lines)
    write(list(rows_of(terms, known, options.seed))[:ROWS], options.output)


if __name__ == "__main__":
    main()
