"""Answers that are a span of a text: their grammar.

The grammar is a suffix automaton over units (Blumer et al. 1985), which llguidance has: it is made in time
linear in the text, and what may come next is found in it as fast as in a regular expression.
"""

from __future__ import annotations

import json

from router.passages import units

MAX_UNITS = 32_768  # of one text: they compile in about 0.1 s, whatever they are
FUEL = 3_000_000  # of llguidance's lexer, which is enough for as many


def quote_grammar(text: str) -> str:
    """A Lark grammar whose language are the spans of `text`, without white space at their ends.

    Raises ValueError for more than `MAX_UNITS`.
    """
    chunks = units(text.strip())  # so that no white space leads to a place where no word follows
    if len(chunks) > MAX_UNITS:
        raise ValueError(f"has more than {MAX_UNITS} words and signs: {len(chunks)}")
    spans = json.dumps({"substring_chunks": chunks})
    return f"start: SPAN\nSPAN: ANY & /(?s:\\S(.*\\S)?)/\nANY: %regex {spans}"
