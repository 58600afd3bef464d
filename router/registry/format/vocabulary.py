"""Tokens that a trainer added to the vocabulary: the base has no rows for them.

PEFT saves the enlarged matrices only if it can reach the base's configuration, and neither of them (without
a word) if it cannot; the tokenizer that trainers leave in the folder then is the only trace.
"""

from __future__ import annotations

import json
from typing import Any

from router.registry.format.codes import Code
from router.registry.format.findings import Findings
from router.registry.format.folder import Folder, FolderError
from router.registry.format.text import some

TOKENIZER = "tokenizer.json"
HEAD_BYTES = 1 << 18  # "added_tokens" comes before the vocabulary, which may take tens of megabytes
_KEY = '"added_tokens":'


def check_vocabulary(folder: Folder, vocab_size: int, found: Findings) -> None:
    """Refuse an adapter whose own tokenizer has tokens that a base of `vocab_size` rows does not have."""
    try:
        with folder.file(TOKENIZER) as file:
            head = file.head(HEAD_BYTES)
    except FolderError:
        return  # it is not needed for anything else
    added = [token for token in _added_tokens(head) if token[0] >= vocab_size]
    if added:
        message = (
            f"was trained with {len(added)} tokens added to the vocabulary ({some(t[1] for t in added)}), "
            f"the base has {vocab_size} rows; train again with the base's own tokenizer"
        )
        found.refuse(Code.VOCABULARY, message, TOKENIZER)


def _added_tokens(head: bytes) -> list[tuple[int, str]]:
    text = head.decode("utf-8", "ignore")
    at = text.find(_KEY)
    if at < 0:
        return []
    try:
        values, _ = json.JSONDecoder().raw_decode(text[at + len(_KEY) :].lstrip())
    except (ValueError, RecursionError):
        return []
    if not isinstance(values, list):
        return []
    return [(v["id"], v["content"]) for v in values if _is_token(v)]


def _is_token(value: Any) -> bool:
    return isinstance(value, dict) and type(value.get("id")) is int and isinstance(value.get("content"), str)
