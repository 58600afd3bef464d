"""The first decisions of a set of adapters, classifiers and thresholds, kept in the state folder."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from router.routing.drift import Counts
from router.types import AdapterProfile

log = logging.getLogger(__name__)
FILE = "routing-baseline.json"
MOST = 8  # sets that are remembered, so that going back to one finds its own
MOST_BYTES = 1 << 20


class BaselineFile:
    """Written by a thread of its own. `profiles` and `digest` say what decides now: the adapters, and all
    beside them. A file that cannot be used counts as empty; one that cannot be written is made another time.
    """

    def __init__(
        self, folder: Path, profiles: Callable[[], Iterable[AdapterProfile]], digest: Callable[[], str]
    ) -> None:
        self._file, self._profiles, self._digest = folder / FILE, profiles, digest
        self._writer = ThreadPoolExecutor(1, "baseline")

    def read(self) -> Counts | None:
        """Of what decides now."""
        return _counts(self._all().get(self._key()))

    def keep(self, counts: Counts) -> None:
        """For what decides now."""
        self._writer.submit(self._keep, self._key(), counts)

    def close(self) -> None:
        """Write what is left."""
        self._writer.shutdown()

    def _key(self) -> str:
        said = json.dumps([self._digest(), *sorted(map(_outline, self._profiles()))])
        return hashlib.sha256(said.encode()).hexdigest()

    def _all(self) -> dict[str, Any]:
        try:
            with self._file.open("rb") as opened:
                found = json.loads(opened.read(MOST_BYTES))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            log.warning("earlier first decisions are lost: %s cannot be used (%s)", self._file, error)
            return {}
        return found if isinstance(found, dict) else {}

    def _keep(self, key: str, counts: Counts) -> None:
        others = [(other, value) for other, value in self._all().items() if other != key]
        kept = dict([*others, (key, {"total": counts.total, "of": dict(counts.of)})][-MOST:])
        beside = self._file.with_name(f".{self._file.name}.new")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            beside.write_text(json.dumps(kept), encoding="utf-8")
            os.replace(beside, self._file)
        except OSError as error:
            log.warning("the first decisions could not be kept for after a restart: %s", error)


def _outline(profile: AdapterProfile) -> list[str]:
    """What tells an adapter from what it was before: lengths stand for texts: there may be thousands."""
    texts = profile.examples, profile.negative_examples, profile.keywords
    return [profile.name, profile.domain, profile.task, *(f"{len(t)} {sum(map(len, t))}" for t in texts)]


def _counts(said: Any) -> Counts | None:
    """None for what is no counts."""
    try:
        of = {str(what): int(count) for what, count in said["of"].items()}
        total = int(said["total"])
    except (TypeError, KeyError, ValueError, AttributeError, OverflowError):
        return None
    whole = total > 0 and sum(of.values()) == total and min(of.values()) >= 0
    return Counts(of, total) if whole else None
