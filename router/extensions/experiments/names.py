"""What experiments, arms and metrics may be called."""

from __future__ import annotations

import re

from router.errors import FieldViolation, InvalidRequest

ID_FORM = "1 to 63 small letters, digits and hyphens, with a letter first and no hyphen last"
WORD_FORM = "1 to 63 letters, digits, and _ . -, with a letter or digit first"
_ID = r"[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?"
_EXPERIMENT = re.compile(rf"experiments/({_ID})")
_NAME = re.compile(_ID)
_WORD = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,62})")


def parse_experiment(resource: str, field: str = "name") -> str:
    """NAME of `experiments/NAME`; raises InvalidRequest naming `field`."""
    match = _EXPERIMENT.fullmatch(resource)
    if match is None:
        raise InvalidRequest([FieldViolation(field, f"must be experiments/NAME, NAME being {ID_FORM}")])
    return match[1]


def id_problem(name: str) -> str:
    """Why an experiment or a namespace cannot be called so; empty if it can."""
    return "" if _NAME.fullmatch(name) else f"must be {ID_FORM}"


def is_word(name: str) -> bool:
    """Whether an arm or a metric may be called so."""
    return _WORD.fullmatch(name) is not None
