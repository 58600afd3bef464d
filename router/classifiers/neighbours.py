"""The nearest examples decide, for more adapters than a regression learns: thousands of adapters in one array
of vectors, and an adapter more costs no other one a new fit.

The chance of an adapter is a softmax of the smooth maximum of the cosines to its nearest examples, beside
"none" at the smooth maximum of those to general requests. Sharpness and level come from left-out texts: a
text that is looked for is left out of the array.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from router.classifiers.gate import level_of
from router.classifiers.regression import softmax

Array = np.ndarray[Any, Any]
COARSE = 64  # directions in which all rows are looked at
LIKELY = 192  # rows that are compared in full
SMOOTH = 11.0  # of cosines: between their mean and their maximum
NEAREST = 4  # examples of an adapter that count
LEAD = 0.05  # by which an example has to be nearer than general requests
SHARPNESSES = (5.0, 8.0, 12.0, 18.0, 27.0, 40.0)
PROBED = 1500  # left-out texts of each kind


@dataclass(frozen=True, slots=True)
class NearestExamples:
    """Unit vectors of examples; `owners` are places of adapters, -1 none of them. `level` is the chance that
    routes."""

    rows: Array  # [examples, size] float16
    coarse: Array  # [examples, COARSE] float32
    basis: Array  # [COARSE, size]
    owners: Array  # [examples]
    sharpness: float = SHARPNESSES[0]
    level: float = 1.0

    @classmethod
    def fit(cls, vectors: Array, owners: Array) -> Self:
        """Of unit vectors [examples, size]."""
        some = vectors[:: max(1, len(vectors) // 4000)].astype(np.float32)
        _, basis = np.linalg.eigh(some.T @ some)
        basis = basis[:, -COARSE:].T.astype(np.float32)
        plain = cls(vectors.astype(np.float16), vectors @ basis.T, basis, owners)
        own, general = np.flatnonzero(owners >= 0), np.flatnonzero(owners < 0)
        probed = np.concatenate([_spread(own), _spread(general)])
        found = [plain._near(vectors[place], place) for place in probed]
        fits = {sharpness: _likelihood(found, owners[probed], sharpness) for sharpness in SHARPNESSES}
        sharpness = max(fits, key=lambda one: fits[one])
        best = [_best(one, sharpness) for one in found]
        chances, names = np.array([chance for _, chance in best]), np.array([name for name, _ in best])
        level = level_of(chances, names == owners[probed], owners[probed] >= 0, owners[probed] < 0)
        return cls(plain.rows, plain.coarse, basis, owners, sharpness, level)

    def chances(self, vector: Array, classes: int) -> Array:
        """[classes] of a request's unit vector; the last is none of the adapters."""
        near = self._near(vector)
        chances = np.zeros(classes, np.float32)
        chances[list(near)] = softmax(self.sharpness * np.array(list(near.values())))
        return chances

    def _near(self, vector: Array, without: int = -1) -> dict[int, float]:
        """Smooth maxima by owner."""
        likely = self.coarse @ (self.basis @ vector)
        if without >= 0:
            likely[without] = -2.0
        places = np.argpartition(-likely, min(LIKELY, len(likely) - 1))[:LIKELY]
        cosines = self.rows[places].astype(np.float32) @ vector
        of: dict[int, list[float]] = {-1: [-1.0]}
        for place, cosine, owner in zip(
            places.tolist(), cosines.tolist(), self.owners[places].tolist(), strict=True
        ):
            if place != without:
                of.setdefault(owner, []).append(cosine)
        found = {}
        for owner, values in of.items():
            nearest = np.sort(values)[-NEAREST:]
            found[owner] = float(np.log(np.exp(SMOOTH * nearest).mean()) / SMOOTH)
        found[-1] += LEAD
        return found


def _spread(places: Array) -> Array:
    return places[:: max(1, len(places) // PROBED)][:PROBED]


def _best(near: Mapping[int, float], sharpness: float) -> tuple[int, float]:
    chances = softmax(sharpness * np.array(list(near.values())))
    named = [(owner, float(chance)) for owner, chance in zip(near, chances, strict=True) if owner >= 0]
    return max(named, key=lambda one: one[1], default=(-1, 0.0))


def _likelihood(found: Sequence[Mapping[int, float]], owners: Array, sharpness: float) -> float:
    total = 0.0
    for near, owner in zip(found, owners.tolist(), strict=True):
        chances = dict(zip(near, softmax(sharpness * np.array(list(near.values()))), strict=True))
        total += float(np.log(max(chances.get(owner, 0.0), 1e-4)))
    return total
