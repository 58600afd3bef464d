"""Votes kept in a file, so that another fit on the same requests asks no classifier again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from router.calibration.model import Binding, CalibrationError
from router.types import Vote

FORMAT = 1


class StoredVotes:
    """Votes by classifier and text, each for the adapters, the classifier and the base that made it.

    Lost votes are not kept: their classifier is asked again. Of a vote only what routing weighs is kept.
    """

    def __init__(self, path: Path, binding: Binding) -> None:
        """Those of the file that still hold under `binding`; none where there is no file.

        Raises CalibrationError for a file that is something else.
        """
        self._path = path
        self._makers = {name: _maker(binding, name) for name in binding.classifiers}
        self._votes: dict[str, dict[str, Any]] = {name: {} for name in self._makers}
        for name, (maker, votes) in _read(path).items():
            if maker == self._makers.get(name):
                self._votes[name] = votes

    def get(self, classifier: str, text: str) -> Vote | None:
        """The vote on this text, if it is here."""
        found = self._votes[classifier].get(_key(text), ())
        if found == ():
            return None
        return Vote(classifier, scores=found) if found is not None else Vote(classifier, declined=True)

    def keep(self, text: str, vote: Vote) -> Vote:
        """Take it in (`save` writes). Gives what another run will read."""
        if vote.error:
            return vote
        scores = None if vote.declined else dict(vote.scores)
        self._votes[vote.classifier][_key(text)] = scores
        return replace(vote, evidence="", latency=0.0)

    def save(self) -> None:
        """Write the file, whole or not at all. Raises CalibrationError where it cannot be."""
        document = {
            "format": FORMAT,
            "classifiers": {
                name: {"made_by": maker, "votes": self._votes[name]} for name, maker in self._makers.items()
            },
        }
        beside = self._path.with_name(f".{self._path.name}.new")
        try:
            beside.write_text(json.dumps(document) + "\n", encoding="utf-8")
            os.replace(beside, self._path)
        except OSError as error:
            raise CalibrationError(f"{self._path}: {error.strerror}; votes cannot be kept there") from None


def _maker(binding: Binding, name: str) -> str:
    """sha256 over what a vote of this classifier depends on, its text apart."""
    parts = [sorted(binding.adapters.items()), binding.classifiers[name], binding.base]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _key(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:24]


def _read(path: Path) -> Mapping[str, tuple[str, dict[str, Any]]]:
    """Maker and votes of each classifier."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["format"] != FORMAT:
            raise CalibrationError(
                f"{path} has format {document['format']!r}, this version reads {FORMAT}: name another file"
            )
        found = {name: (str(one["made_by"]), one["votes"]) for name, one in document["classifiers"].items()}
        if not all(_is_vote(vote) for _, votes in found.values() for vote in votes.values()):
            raise ValueError
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise CalibrationError(f"{path}: {error.strerror}; it must be a file of votes, or none yet") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CalibrationError(f"{path} is no file of votes: name another one, or delete it") from None
    return found


def _is_vote(vote: object) -> bool:
    """None is a classifier that declined."""
    if vote is None:
        return True
    return isinstance(vote, dict) and all(
        isinstance(s, int | float) and not isinstance(s, bool) for s in vote.values()
    )
