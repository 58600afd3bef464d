"""Names and versions of adapters: what is allowed, and what a folder's name becomes."""

from __future__ import annotations

import re

from router.names import BASE

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+-]{0,62}")
DEFAULT_VERSION = "0"
NAME_RULE = "1 to 63 of a-z, 0-9, '.', '_', '-', starting with a letter or digit, and not 'base'"
LABEL_RULE = "1 to 63 of a-z, 0-9, '.', '_', '-', starting with a letter or digit"
VERSION_RULE = "1 to 63 of letters, digits, '.', '+', '-', starting with a letter or digit"


def is_name(text: str) -> bool:
    """Whether `text` may name an adapter; `base` asks for the base."""
    return is_label(text) and text != BASE


def is_label(text: str) -> bool:
    """Whether `text` may be a domain or a task."""
    return NAME.fullmatch(text) is not None


def is_version(text: str) -> bool:
    """Whether `text` may be a version."""
    return VERSION.fullmatch(text) is not None


def name_from_folder(folder: str) -> str:
    """The adapter name a folder's name gives: lower case, other characters become '-'; '' if none is left.

    >>> name_from_folder("My LoRA"), name_from_folder("base")
    ('my-lora', 'base-adapter')
    """
    lowered = re.sub(r"[^a-z0-9._-]+", "-", folder[:255].lower())
    name = lowered.lstrip("._-")[:63].rstrip("-")
    return f"{BASE}-adapter" if name == BASE else name
