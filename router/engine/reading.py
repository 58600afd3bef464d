"""Readings: what the base makes of tokens that it does not answer. They run in the steps of the others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch

from router.engine.base import Reading
from router.engine.model.backbone import Taps
from router.engine.rows import Row

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from router.engine.rows import Chunk

_SLICE = 64  # rows of logits turned into float32 at once


@dataclass(slots=True, eq=False, kw_only=True)
class ReadingRow(Row):
    """The tokens of one reading and what is known of them so far."""

    samples: ClassVar[bool] = False

    reading: Reading
    layer: int | None = None  # whose hidden states are wanted; None: log-probabilities are
    sums: list[torch.Tensor] = field(default_factory=list)  # float32 [hidden] of each of `spans`
    found: list[torch.Tensor] = field(default_factory=list)  # float32, one log-probability a token

    def __post_init__(self) -> None:
        reading = self.reading
        self.tokens = [*reading.context, *reading.tokens]
        if self.layer is None:
            del self.tokens[-1]  # predicted, and predicts nothing
        self.total = len(self.tokens)
        self.deadline, self.priority = reading.deadline, -int(reading.background)
        self.owner = f"reading {reading.scope}"

    @property
    def prefix(self) -> list[int]:
        """The context. Of hidden states nothing: they are wanted of every token, and layers are left out."""
        return list(self.reading.context) if self.layer is None else []

    def restart(self) -> None:
        """Forget what was read."""
        self.computed = 0
        self.sums, self.found = [], []

    def wanted(self, count: int) -> range:
        """Which of the next `count` tokens matter: those read, or those that predict one of them."""
        first = len(self.reading.context) - (self.layer is None)
        return range(max(0, first - self.computed), count)

    def targets(self, wanted: range) -> list[int]:
        """The tokens that `wanted` ones predict."""
        start = self.computed - len(self.reading.context) + 1
        return list(self.reading.tokens[start + wanted.start : start + wanted.stop])

    @property
    def spans(self) -> list[range]:
        """The places among the tokens read whose means are wanted."""
        count, ends = len(self.reading.tokens), self.reading.ends
        whole = range(count)
        return [whole, whole[:ends], whole[max(0, count - ends) :]] if ends else [whole]

    def add(self, states: torch.Tensor) -> None:
        """Count hidden states [n, hidden] in: those wanted of the chunk that is being computed."""
        start = max(0, self.computed - len(self.reading.context))
        if not self.sums:
            self.sums = [states.new_zeros(states.shape[1], dtype=torch.float32) for _ in self.spans]
        for total, span in zip(self.sums, self.spans, strict=True):
            part = states[max(0, span.start - start) : max(0, span.stop - start)]
            total += part.sum(0, dtype=torch.float32)

    def result(self) -> NDArray[np.float32] | None:
        """What was asked for, when all is computed; None if it is not finite."""
        means = [total / len(span) for total, span in zip(self.sums, self.spans, strict=False)]
        values = torch.cat(means or self.found)
        array: NDArray[np.float32] = values.cpu().numpy()
        return array if np.isfinite(array).all() else None


class ReadingStep:
    """What the readings among the chunks of a step want of the forward pass.

    `rows`: tokens of the step whose logits they want; `taps`: who wants hidden states.
    """

    def __init__(self, chunks: Sequence[Chunk], bounds: Sequence[int]) -> None:
        self.rows: list[int] = []
        self._scored: list[tuple[ReadingRow, list[int]]] = []
        pooled: dict[int, list[tuple[ReadingRow, slice]]] = defaultdict(list)
        for chunk, start in zip(chunks, bounds, strict=False):
            row = chunk.row
            if not isinstance(row, ReadingRow) or not (wanted := row.wanted(chunk.count)):
                continue
            places = range(start + wanted.start, start + wanted.stop)
            if row.layer is None:
                self.rows += places
                self._scored.append((row, row.targets(wanted)))
            else:
                pooled[row.layer].append((row, slice(places.start, places.stop)))
        taps = {layer: _tap(spans) for layer, spans in pooled.items()}
        self.taps = Taps(taps, _last_layer(chunks)) if taps else None

    def take(self, logits: torch.Tensor) -> None:
        """`logits` [len(rows), vocabulary], as asked for."""
        if not self._scored:
            return
        targets = torch.tensor([t for _, ids in self._scored for t in ids], device=logits.device)
        parts = zip(torch.split(logits, _SLICE), torch.split(targets, _SLICE), strict=True)
        found = torch.cat([_log_probabilities(part, ids) for part, ids in parts])
        start = 0
        for row, ids in self._scored:
            row.found.append(found[start : start + len(ids)])
            start += len(ids)


def _last_layer(chunks: Sequence[Chunk]) -> int:
    """The layer after which nobody wants anything, -1 if somebody needs all."""
    layers = [c.row.layer if isinstance(c.row, ReadingRow) else None for c in chunks]
    known = [layer for layer in layers if layer is not None]
    return max(known) if len(known) == len(layers) else -1


def _tap(spans: Sequence[tuple[ReadingRow, slice]]) -> Callable[[torch.Tensor], None]:
    def tap(states: torch.Tensor) -> None:
        for row, span in spans:
            row.add(states[span])

    return tap


def _log_probabilities(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    wide = logits.float()
    return wide.gather(-1, ids[:, None])[:, 0] - wide.logsumexp(-1)
