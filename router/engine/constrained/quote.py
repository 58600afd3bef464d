"""Answers that are a span of a text: the units of which a span is made, its grammar, the passage of a prompt.

The grammar is a suffix automaton over units (Blumer et al. 1985), which llguidance has: it is made in time
linear in the text, and what may come next is found in it as fast as in a regular expression.
"""

from __future__ import annotations

import json
import re

MAX_UNITS = 32_768  # of one text: they compile in about 0.1 s, whatever they are
MAX_LETTERS = 64  # of one unit
FUEL = 3_000_000  # of llguidance's lexer, which is enough for as many

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


def quote_grammar(text: str) -> str:
    """A Lark grammar whose language are the spans of `text`, without white space at their ends.

    Raises ValueError for more than `MAX_UNITS`.
    """
    chunks = units(text.strip())  # so that no white space leads to a place where no word follows
    if len(chunks) > MAX_UNITS:
        raise ValueError(f"has more than {MAX_UNITS} words and signs: {len(chunks)}")
    spans = json.dumps({"substring_chunks": chunks})
    return f"start: SPAN\nSPAN: ANY & /(?s:\\S(.*\\S)?)/\nANY: %regex {spans}"


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
