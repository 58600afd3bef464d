"""One adapter's examples against requests that are nobody's: learned of it without the other adapters.

Ridge regression in its dual form (Saunders, Gammerman, Vovk 1998). The strangers' part is inverted once, so
that an adapter costs a product with it; leaving each text out costs nothing more (Cawley and Talbot 2003),
and what the texts come to when they are left out says where the adapter's level has to be.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from router.classifiers.regression import product_in_pieces

Array = np.ndarray[Any, Any]
PENALTY = 0.3
BIAS = 0.1  # square of the constant feature
SHARE = 0.3  # weight of an adapter's texts together; that of the strangers is 1
FEW = 0.01  # share of strangers that may come above a level
OWN = 0.1  # share of an adapter's own texts that the level takes its bearings from
FACTS = 4  # numbers of a verdict beside the weights


@dataclass(frozen=True, slots=True)
class Verdict:
    """A linear score of unit vectors; a request above `level` is the adapter's.

    `recognised` is the share of its own examples that are when they are left out, `taken` that of strangers.
    """

    weights: Array  # [size] float16
    bias: float
    level: float
    recognised: float
    taken: float

    def above(self, vector: Array) -> float:
        """How far the score is above the level."""
        return float(self.weights.astype(np.float32) @ vector) + self.bias - self.level

    def packed(self) -> Array:
        """[1, size + 4] float16."""
        facts = [self.bias, self.level, self.recognised, self.taken]
        return np.concatenate([self.weights, np.array(facts, np.float16)])[None]

    @classmethod
    def of(cls, packed: Array) -> Self:
        """What `packed` gave."""
        row = packed[0]
        return cls(row[:-FACTS].astype(np.float16), *(float(fact) for fact in row[-FACTS:]))


class BackgroundNegatives:
    """Unit vectors [n, size] of requests that no adapter should get."""

    def __init__(self, vectors: Array, inverse: Array | None = None) -> None:
        """`inverse`: what `inverse_of` gave for these vectors, if that is known."""
        self._vectors = vectors.astype(np.float32)
        self._inverse = inverse_of(vectors) if inverse is None else inverse
        self._alone = -self._inverse.sum(axis=1)  # coefficients where there is nobody else

    def learn(self, own: Array, against: Array) -> Verdict:
        """From an adapter's examples [m, size], m > 0, and those that it must not have [k, size]."""
        rows = np.concatenate([own, against]).astype(np.float32)
        said = np.concatenate([np.ones(len(own)), -np.ones(len(against))]).astype(np.float32)
        count = len(self._vectors)
        shared = product_in_pieces(self._vectors, rows.T) + BIAS  # [n, m + k]
        spread = product_in_pieces(self._inverse, shared)
        apart = rows @ rows.T + BIAS - shared.T @ spread
        apart[np.diag_indices_from(apart)] += PENALTY * len(rows) / (SHARE * count)
        inverse = np.linalg.inv(apart.astype(np.float64)).astype(np.float32)
        mine = inverse @ (said - shared.T @ self._alone)
        theirs = self._alone - spread @ mine
        left_out = said - mine / np.diag(inverse)
        strange = -1 - theirs / (np.diag(self._inverse) + ((spread @ inverse) * spread).sum(axis=1))
        level = _level(left_out[: len(own)], strange)
        return Verdict(
            weights=(rows.T @ mine + self._vectors.T @ theirs).astype(np.float16),
            bias=BIAS * float(mine.sum() + theirs.sum()),
            level=level,
            recognised=float((left_out[: len(own)] > level).mean()),
            taken=float((strange > level).mean()),
        )


def inverse_of(vectors: Array) -> Array:
    """[n, n] of the penalised products of these vectors."""
    gram = (vectors @ vectors.T + BIAS).astype(np.float64)
    gram[np.diag_indices_from(gram)] += PENALTY
    inverse: Array = np.linalg.inv(gram).astype(np.float32)
    return inverse


def _level(own: Array, strange: Array) -> float:
    """Half-way from the nearest stranger to an adapter's own texts where they lie apart; where they do not,
    what one stranger in a hundred is above."""
    few = float(np.quantile(strange, 1 - FEW))
    return max(few, (float(strange.max()) + float(np.quantile(own, OWN))) / 2)
