"""What classifiers learn from: the adapters' examples, their negative examples, and general requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from router.routing.texts import read_background
from router.types import AdapterProfile

MAX_ROWS = 4000  # texts learned at most, spread evenly over adapters
Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Lessons:
    """Texts and what each may be. A negative example teaches "not this adapter", not what it is instead."""

    names: tuple[str, ...]  # classes; the last, "", is none of the adapters
    texts: tuple[str, ...]
    allowed: Array  # [texts, classes], 1 where a text may be of the class


def lessons(adapters: Sequence[AdapterProfile], background: Path) -> Lessons | None:
    """Of all adapters that have examples; None if there is no such adapter."""
    learnable = [a for a in adapters if a.examples]
    if not learnable:
        return None
    names = (*(a.name for a in learnable), "")
    each = max(8, MAX_ROWS // len(names))
    classes = np.eye(len(names), dtype=np.float32)
    texts: list[str] = []
    allowed: list[Array] = []
    for i, adapter in enumerate(learnable):
        texts += (positive := spread(adapter.examples, each))
        allowed += [classes[i]] * len(positive)
        texts += (negative := spread(adapter.negative_examples, each))
        allowed += [1 - classes[i]] * len(negative)
    texts += (general := read_background(background, adapters))
    allowed += [classes[-1]] * len(general)
    return Lessons(names, tuple(texts), np.array(allowed))


def spread(texts: Sequence[str], count: int) -> list[str]:
    """At most `count` of them, evenly from first to last."""
    kept = [t for t in texts if t.strip()]
    step = max(1.0, len(kept) / count)
    return [kept[int(i * step)] for i in range(min(count, len(kept)))]
