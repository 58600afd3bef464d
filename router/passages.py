"""The passage that a prompt brings, and the words and signs of which a text is made."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import islice

MAX_LETTERS = 64  # of one unit
PASSAGE_WORDS = 20  # of a text that has a passage: bare questions hardly have as many

# A number with its separators, a letter of a script that puts no spaces between words, a word, white space,
# a sign. Marks that combine with letters belong to the word.
_MARKS = r"\u0300-\u036f\u0591-\u05c7\u064b-\u065f\u0900-\u0dff"
_UNSPACED = (
    r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff"
    r"\U00020000-\U0003ffff"
)
_KINDS = (
    r"\d{1,30}(?:[.,:]\d{1,30}){1,8}",
    f"[{_UNSPACED}]",
    rf"(?:(?![{_UNSPACED}])[\w{_MARKS}]){{1,{MAX_LETTERS}}}",
    rf"\s{{1,{MAX_LETTERS}}}",
    ".",
)
_UNIT = re.compile("|".join(_KINDS), re.DOTALL)

# Where the passage of a prompt begins and ends: at the beginning of a line, in any case of letters.
LABELS = ("Passage", "Context", "Text", "Article", "Document")
ENDS = ("Question", "Q")
_BEGIN = re.compile(rf"^[ \t]*(?:{'|'.join(LABELS)}):", re.IGNORECASE | re.MULTILINE)
_END = re.compile(rf"^[ \t]*(?:{'|'.join(ENDS)}):", re.IGNORECASE | re.MULTILINE)


def units(text: str) -> list[str]:
    """The text cut where a span may begin or end.

    >>> units("In 1,450 seats")
    ['In', ' ', '1,450', ' ', 'seats']
    """
    return _UNIT.findall(text)


def passage_of(prompt: str) -> str:
    """What stands after the first line that begins with a label and before the next that begins a question.

    '' where no line begins with a label.

    >>> passage_of("Answer briefly.\\n\\nPassage: It rained.\\n\\nQuestion: Did it rain?")
    'It rained.'
    """
    begin = _BEGIN.search(prompt)
    if begin is None:
        return ""
    end = _END.search(prompt, begin.end())
    return prompt[begin.end() : end.start() if end else None].strip()


def has_passage(texts: Iterable[str]) -> bool:
    """Whether one of these texts brings a passage: it has a labelled one (`passage_of`), or at least
    `PASSAGE_WORDS` words. A letter of a script that puts no spaces between words counts as a word.

    >>> has_passage(["When does the pool close?"]), has_passage(["Text: The pool closes at 8.\\nQ: When?"])
    (False, True)
    """
    return any(passage_of(text) or _is_long(text) for text in texts)


def _is_long(text: str) -> bool:
    words = (found for found in _UNIT.finditer(text) if found[0][0].isalnum())
    return sum(1 for _ in islice(words, PASSAGE_WORDS)) == PASSAGE_WORDS
