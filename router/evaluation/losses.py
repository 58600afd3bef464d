"""Teacher-forced losses row by row, so that two models can be compared on the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from router.evaluation.metrics import Selection
from router.training.answers import AnswerModel
from router.training.batch import Example, collate


@dataclass(frozen=True, slots=True)
class Losses:
    """A `Scorer` in nats per gold token. Each array holds one number for each row [R]."""

    nats: NDArray[np.float64]
    tokens: NDArray[np.float64]
    exact: NDArray[np.float64]  # 1 where greedy decoding gives the gold answer

    def score(self, rows: Selection) -> float:
        """Loss per token of the rows taken as one text."""
        return float(self.nats[rows].sum() / self.tokens[rows].sum())


def row_losses(model: AnswerModel, examples: Sequence[Example], batch: int = 16) -> Losses:
    """Losses of `examples`, in their order; rows of like length go through the model together."""
    order = sorted(range(len(examples)), key=lambda row: len(examples[row]))
    judged = np.zeros((3, len(examples)))
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        values = model.judge(collate([examples[row] for row in rows]).to(model.model.device))
        judged[:, rows] = [value.double().cpu().numpy() for value in values]
    return Losses(*judged)
