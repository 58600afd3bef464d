"""How the classifier `nearest` knows many adapters by their examples: nearest vectors by adapter, and each
adapter's examples against requests that no adapter should get. An adapter is learned without going through
the others.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from router.classifiers.regression import product_in_pieces

Array = np.ndarray[Any, Any]
COARSE = 64  # numbers of a row that are looked at for every request
LIKELY = 192  # rows that are compared in full
BLOCK = 4096  # rows that are allocated together: nothing is copied when more come


@dataclass(frozen=True, slots=True)
class NearestOwner:
    """The row of an owner that is closest, in [-1, 1]; `against`: the closest of those it must not have."""

    owner: str
    similarity: float
    against: float = -1.0


class _Block:
    """Room for rows."""

    def __init__(self, size: int) -> None:
        self.coarse = np.zeros((BLOCK, COARSE), np.float32)
        self.fine = np.zeros((BLOCK, size), np.int8)
        self.scale = np.zeros(BLOCK, np.float32)
        self.against = np.zeros(BLOCK, np.bool_)
        self.free = np.ones(BLOCK, np.bool_)
        self.owner: list[str] = [""] * BLOCK

    def likelihood(self, short: Array) -> Array:
        """[BLOCK] products with a short vector; of free places, less than any."""
        found: Array = self.coarse @ short
        found[self.free] = -np.inf
        return found


class Neighbours:
    """Unit vectors of `size` numbers by owner. Of many threads: a look takes the lock for about a
    millisecond, a change for as long as it takes to copy one owner's rows."""

    def __init__(self, basis: Array) -> None:
        """`basis` [64, size]: orthonormal directions."""
        if basis.shape[0] != COARSE:
            raise ValueError(f"basis has {basis.shape[0]} directions, not {COARSE}")
        self._basis = basis.astype(np.float32)
        self._blocks: list[_Block] = []
        self._free: list[int] = []
        self._rows: dict[str, list[int]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return sum(map(len, self._rows.values()))

    @property
    def owners(self) -> Mapping[str, Sequence[int]]:
        """The rows of each owner."""
        return self._rows

    def put(self, owner: str, vectors: Array, against: Array | None = None) -> None:
        """Have these rows [n, size], and those that speak `against` it, in place of the owner's."""
        rows = vectors if against is None or not len(against) else np.concatenate([vectors, against])
        fine, scale = quantise(rows)
        coarse = rows.astype(np.float32) @ self._basis.T
        with self._lock:
            self._drop(owner)
            places = self._rows[owner] = [self._place() for _ in rows]
            for i, place in enumerate(places):
                block, at = self._blocks[place // BLOCK], place % BLOCK
                block.coarse[at], block.fine[at], block.scale[at] = coarse[i], fine[i], scale[i]
                block.against[at], block.owner[at], block.free[at] = i >= len(vectors), owner, False

    def _place(self) -> int:
        if not self._free:
            first = len(self._blocks) * BLOCK
            self._blocks.append(_Block(self._basis.shape[1]))
            self._free = list(range(first + BLOCK - 1, first - 1, -1))
        return self._free.pop()

    def drop(self, owner: str) -> None:
        """Forget the owner's rows."""
        with self._lock:
            self._drop(owner)

    def _drop(self, owner: str) -> None:
        for place in self._rows.pop(owner, ()):
            self._blocks[place // BLOCK].free[place % BLOCK] = True
            self._free.append(place)

    def near(self, vector: Array, most: int) -> list[NearestOwner]:
        """At most so many owners, the closest first."""
        short = self._basis @ vector
        with self._lock:
            fine, scale, owners, against = self._likely(short)
        found: dict[str, list[float]] = {}
        similar = (fine.astype(np.float32) @ vector) * scale
        for value, owner, other in zip(similar.tolist(), owners, against.tolist(), strict=True):
            best = found.setdefault(owner, [-1.0, -1.0])
            best[other] = max(best[other], value)
        ranked = sorted(found, key=lambda owner: -found[owner][0])[:most]
        return [NearestOwner(owner, *found[owner]) for owner in ranked]

    def _likely(self, short: Array) -> tuple[Array, Array, list[str], Array]:
        """Rows [n, size] with their scales, owners, and whether they speak against them."""
        found: list[tuple[Array, Array, list[str], Array]] = []
        scores = [block.likelihood(short) for block in self._blocks]
        least = _least(scores)
        for block, score in zip(self._blocks, scores, strict=True):
            places = np.flatnonzero(score >= least)
            owners = [block.owner[place] for place in places]
            found.append((block.fine[places], block.scale[places], owners, block.against[places]))
        if not found:
            return np.zeros((0, self._basis.shape[1]), np.int8), np.zeros(0), [], np.zeros(0, np.bool_)
        fine, scale, owner_lists, against = zip(*found, strict=True)
        joined = [owner for owners in owner_lists for owner in owners]
        return np.concatenate(fine), np.concatenate(scale), joined, np.concatenate(against)


def _least(scores: Sequence[Array]) -> float:
    """Of the likely rows: the score from which a row is one."""
    if not scores:
        return -np.inf
    together = np.concatenate(scores)
    cut = np.partition(together, -LIKELY)[-LIKELY]
    return float(max(cut, np.finfo(np.float32).min))


def quantise(rows: Array) -> tuple[Array, Array]:
    """int8 [n, size] and scales [n]: rows within a third of a percent, in a quarter of the memory."""
    scale = (np.abs(rows).max(axis=1) / 127).astype(np.float32)
    safe = np.maximum(scale, 1e-12)[:, None]
    return np.rint(rows / safe).astype(np.int8), scale


def principal(rows: Array, count: int = COARSE) -> Array:
    """[count, size] directions in which the rows differ most; fewer rows are filled up with others."""
    _, _, found = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
    if len(found) < count:
        more = np.random.default_rng(0).standard_normal((count - len(found), rows.shape[1]))
        found = np.linalg.qr(np.concatenate([found, more]).T)[0].T
    return found[:count].astype(np.float32)


# -- an adapter's examples against background requests

PENALTY = 0.3
BIAS = 0.1  # square of the constant feature
SHARE = 0.3  # weight of an adapter's texts together; that of the strangers is 1
FEW = 0.01  # share of strangers that may come above a level
OWN = 0.1  # share of an adapter's own texts that the level takes its bearings from
FACTS = 4  # numbers of a verdict beside the weights


@dataclass(frozen=True, slots=True)
class LinearScorer:
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
        self._alone = -self._inverse.sum(axis=1)  # coefficients without an adapter

    def learn(self, own: Array, against: Array) -> LinearScorer:
        """From an adapter's examples [m, size], m > 0, and those that it must not have [k, size]."""
        rows = np.concatenate([own, against]).astype(np.float32)
        target = np.concatenate([np.ones(len(own)), -np.ones(len(against))]).astype(np.float32)
        count = len(self._vectors)
        shared = product_in_pieces(self._vectors, rows.T) + BIAS  # [n, m + k]
        spread = product_in_pieces(self._inverse, shared)
        apart = rows @ rows.T + BIAS - shared.T @ spread
        apart[np.diag_indices_from(apart)] += PENALTY * len(rows) / (SHARE * count)
        inverse = np.linalg.inv(apart.astype(np.float64)).astype(np.float32)
        mine = inverse @ (target - shared.T @ self._alone)
        theirs = self._alone - spread @ mine
        left_out = target - mine / np.diag(inverse)
        strange = -1 - theirs / (np.diag(self._inverse) + ((spread @ inverse) * spread).sum(axis=1))
        level = _level(left_out[: len(own)], strange)
        return LinearScorer(
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
