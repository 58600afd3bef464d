"""An experiment as JSON, and back.

Fields that a newer version wrote and this one does not know are left aside; fields that are not there yet
get their defaults.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from router.experiments.model import Experiment

if TYPE_CHECKING:
    from pydantic import TypeAdapter


@cache
def _adapter() -> TypeAdapter[Experiment]:
    from pydantic import TypeAdapter

    return TypeAdapter(Experiment)


def to_json(experiment: Experiment) -> str:
    """The document; the etag is kept beside it."""
    return _adapter().dump_json(experiment, exclude={"etag"}).decode()


def from_json(document: str, etag: str) -> Experiment:
    """The experiment of a document. Raises ValueError if it is none."""
    from dataclasses import replace

    return replace(_adapter().validate_json(document), etag=etag)
