"""Chances of adapters that have a few examples each, by a small network that was trained on other adapters.

A cosine means little by itself: examples of one adapter lie close together, those of another far apart, and
some are near everything. So the network gets the cosines of a request to an adapter's examples beside what
they are among the examples themselves, to those of the other adapters and to general requests. It looks at
each adapter alike, then at all of them together (a network on sets, as in Zaheer et al. 2017), and gives a
chance to each and to "none of them". recipes/routing/scorer.py trains it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from router.classifiers.regression import BUCKETS, Block, product_in_pieces, softmax

WEIGHTS = Path(__file__).with_name("fewshot.safetensors")
FEW = 32  # examples of an adapter, up to which this is trained
MOST = 8  # adapters that are looked at: those with the nearest examples
PARTS = (1.0, 0.5, 0.5)  # weights of the whole, the first sentence and the last one
KINDS = 4  # of cosines: of all parts together, and of each part
SMOOTH, NEAREST, NEAREST_GENERAL = 11.0, 8, 3
RANKS = (0, 1, 3)  # of the nearest examples, that count by themselves
ABSENT = -100.0  # in place of a cosine to an example that there is not
REFUSING = 22.0  # nats by which a negative example counts, for each unit of cosine that it is ahead
LIMIT = 6.0  # standard deviations of a feature that count at most
STRANGE = 0.99  # quantile of the general requests
Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class FewShot:
    """What is known of adapters by their examples; a description is an example, the last one."""

    vectors: Array  # [3, 384, examples], each part of unit length; adapter by adapter
    centres: Array  # [384, adapters], of the whole texts
    places: Array  # [adapters, most examples of one], -1 where one has fewer
    described: Array  # [adapters], whether the last example is a description
    general: Array  # [3, 384, requests]
    statistics: Array  # [adapters, statistics]
    buckets: Array  # n-grams of all examples: part * BUCKETS + bucket
    values: Array  # of these
    starts: Array  # [examples + 1], of each one's n-grams
    negative: Array  # [3, 384, negative examples]
    refused: Array  # [negative examples], the adapter that each is not for

    @classmethod
    def of(
        cls,
        vectors: Array,
        ends: Array,
        described: Array,
        general: Array,
        ngrams: Sequence[Sequence[Block]],
        negative: Array,
        refused: Array,
    ) -> FewShot:
        """Of vectors [texts, 3 * 384] of examples, of general requests and of negative examples, and of the
        examples' n-grams. `ends` [adapters] are the ends of each one's examples."""
        found = [_flat(blocks) for blocks in ngrams]
        starts = np.cumsum([0, *(len(buckets) for buckets, _ in found)])
        buckets, values = (np.concatenate(side) for side in zip(*found, strict=True))
        bounds = list(itertools.pairwise((0, *ends.tolist())))
        places = np.full((len(ends), max(end - start for start, end in bounds)), -1)
        for row, (start, end) in zip(places, bounds, strict=True):
            row[: end - start] = np.arange(start, end)
        wholes = vectors[:, : vectors.shape[1] // len(PARTS)]
        centres = np.stack([_unit(wholes[start:end].mean(0)) for start, end in bounds], 1)
        return cls(
            _columns(vectors),
            centres,
            places,
            described,
            _columns(general),
            _statistics(vectors, bounds, general),
            buckets,
            values,
            starts,
            _columns(negative),
            refused,
        )

    def features(self, vectors: Array, ngrams: Sequence[Sequence[Block]]) -> tuple[Array, Array, Array]:
        """Of requests: [requests, MOST, features] of adapters, [requests, features] of the request, and which
        adapters they are [requests, MOST], -1 for none."""
        counts = (self.places >= 0).sum(1)
        every = _cosines(vectors, self.vectors)
        cosines = np.where(self.places >= 0, every[:, :, self.places], ABSENT)
        ordered = np.sort(cosines, axis=-1)[..., ::-1]
        smooth = _smooth_of(ordered, counts)
        general = _smooth(_cosines(vectors, self.general), NEAREST_GENERAL)
        chosen = np.argsort(-smooth[0], axis=1)[:, :MOST]
        rows = np.arange(len(vectors))[:, None]
        size = counts[chosen]

        mean = np.where(cosines > ABSENT, cosines, 0)[:, rows, chosen].sum(-1) / size
        last = self.places[chosen, size - 1]
        best = np.where(cosines > ABSENT, cosines[1:].max(0), ABSENT)[0][rows, chosen]
        best = np.sort(best, axis=-1)[..., ::-1]
        near = ordered[:, rows, chosen]
        kinds = [np.take_along_axis(near, np.minimum(i, size - 1)[None, ..., None], 3)[..., 0] for i in RANKS]
        kinds += [mean, np.where(self.described[chosen], every[:, rows, last], mean)]
        own, joint = self.statistics[chosen], smooth[:, rows, chosen]
        others = np.stack([smooth[k] - _best_other(smooth[k]) for k in range(KINDS)])
        of_adapters = np.concatenate(
            [
                *(np.moveaxis(kind, 0, 2) for kind in kinds),
                best[..., :1],
                _smooth_of(best, size)[..., None],
                self._shared_words(ngrams, chosen),
                (vectors[:, : len(self.centres)] @ self.centres)[rows, chosen][..., None],
                own,
                _compared(near[0, ..., 0], joint[0], own),
                np.moveaxis(others[:, rows, chosen], 0, 2),
                (joint[0] - smooth[0].mean(1, keepdims=True))[..., None],
                np.moveaxis(joint - general[..., None], 0, 2),
                np.moveaxis(joint, 0, 2),
            ],
            2,
        )
        number = np.full(len(vectors), np.log(min(len(counts), MOST)))
        of_request = np.stack([*general, number, smooth[0].max(1), smooth[1].max(1)], 1)
        room = ((0, 0), (0, MOST - chosen.shape[1]))
        padded = np.pad(of_adapters, (*room, (0, 0)))
        return (
            padded.astype(np.float32),
            of_request.astype(np.float32),
            np.pad(chosen, room, constant_values=-1),
        )

    def chances(self, vectors: Array, ngrams: Sequence[Sequence[Block]]) -> Array:
        """[requests, adapters + 1]; the last is none of the adapters. Adapters beyond the `MOST` nearest ones
        have none."""
        of_adapters, of_request, chosen = self.features(vectors, ngrams)
        found = network().chances(of_adapters, of_request, chosen >= 0)
        every = np.zeros((len(vectors), len(self.places) + 1), np.float32)
        every[:, -1] = found[:, -1]
        rows, places = np.nonzero(chosen >= 0)
        every[rows, chosen[rows, places]] = found[rows, places]
        return self._refusing(every, vectors) if len(self.refused) else every

    def _refusing(self, chances: Array, vectors: Array) -> Array:
        """An adapter whose negative example is nearer than its nearest example loses chance to none of them:
        the network knows no negative examples."""
        own, negative = _cosines(vectors, self.vectors)[0], _cosines(vectors, self.negative)[0]
        adjusted = chances.copy()
        for adapter in np.unique(self.refused):
            examples = self.places[adapter][self.places[adapter] >= 0]
            ahead = negative[:, self.refused == adapter].max(1) - own[:, examples].max(1)
            adjusted[:, adapter] *= np.exp(-REFUSING * np.maximum(ahead, 0))
        adjusted[:, -1] += 1 - adjusted.sum(1)
        return adjusted

    def _shared_words(self, ngrams: Sequence[Sequence[Block]], chosen: Array) -> Array:
        """[requests, chosen, 2]: the largest and the mean product of n-grams, summed over the parts."""
        shared = np.zeros((*chosen.shape, 2), np.float32)
        dense = np.zeros(len(PARTS) * BUCKETS, np.float32)
        for row, adapters, blocks in zip(shared, chosen, ngrams, strict=True):
            buckets, values = _flat(blocks)
            dense[buckets] = values
            for pair, adapter in zip(row, adapters, strict=True):
                examples = self.places[adapter][self.places[adapter] >= 0]
                first, end = self.starts[examples[0]], self.starts[examples[-1] + 1]
                products = self.values[first:end] * dense[self.buckets[first:end]]
                found = np.add.reduceat(products, self.starts[examples] - first)
                pair[:] = found.max(), found.mean()
            dense[buckets] = 0
        return shared


def _flat(blocks: Sequence[Block]) -> Block:
    """Buckets and values of all parts of one text."""
    buckets = np.concatenate([part * BUCKETS + found for part, (found, _) in enumerate(blocks)])
    return buckets, np.concatenate([values for _, values in blocks]).astype(np.float32)


def _columns(vectors: Array) -> Array:
    """[3, 384, texts] of [texts, 3 * 384]."""
    parts = vectors.reshape(len(vectors), len(PARTS), vectors.shape[1] // len(PARTS))
    columns: Array = np.ascontiguousarray(parts.transpose(1, 2, 0))
    return columns


def _unit(row: Array) -> Array:
    scaled: Array = row / max(float(np.linalg.norm(row)), 1e-9)
    return scaled


def _cosines(left: Array, columns: Array) -> Array:
    """[KINDS, left, right] of rows [left, 3 * 384] and columns [3, 384, right]."""
    weights = np.square(PARTS)
    parts = left.reshape(len(left), len(PARTS), -1)
    single = [product_in_pieces(parts[:, i], columns[i]) for i in range(len(PARTS))]
    joint = sum(weight * part for weight, part in zip(weights, single, strict=True)) / weights.sum()
    return np.stack([joint, *single])


def _smooth(cosines: Array, count: int) -> Array:
    """Between the mean and the maximum of the `count` largest of the last axis."""
    largest = cosines
    if cosines.shape[-1] > count:
        largest = np.partition(cosines, cosines.shape[-1] - count, axis=-1)[..., -count:]
    smooth: Array = np.log(np.exp(SMOOTH * largest).mean(axis=-1)) / SMOOTH
    return smooth


def _smooth_of(ordered: Array, counts: Array) -> Array:
    """The same of the `NEAREST` first, of which there are `counts`; what is absent counts nothing."""
    first = np.exp(SMOOTH * ordered[..., :NEAREST]).sum(-1)
    smooth: Array = np.log(first / np.minimum(counts, NEAREST)) / SMOOTH
    return smooth


def _best_other(values: Array) -> Array:
    """Of [requests, adapters]: the largest of another adapter; of a single adapter 0."""
    if values.shape[1] == 1:
        return np.zeros_like(values)
    ordered = np.sort(values, axis=1)
    first, second = ordered[:, -1:], ordered[:, -2:-1]
    return np.where(values == first, second, first)


def _compared(nearest: Array, smooth: Array, own: Array) -> Array:
    """The nearest example and the smooth maximum [requests, adapters] by what is usual for the adapter."""
    usual, spread, joint, mean, deviation, strange = (own[..., i] for i in (0, 1, 3, 6, 7, 8))
    return np.stack(
        [
            (smooth - mean) / deviation,
            smooth - strange,
            nearest - usual,
            smooth - joint,
            (nearest - usual) / (spread + 0.05),
        ],
        2,
    )


def _statistics(vectors: Array, bounds: Sequence[tuple[int, int]], general: Array) -> Array:
    """[adapters, statistics]: how near an adapter's examples are to each other, to those of other adapters
    and to general requests."""
    among, to_general = _cosines(vectors, _columns(vectors))[0], _cosines(vectors, _columns(general))[0]
    found = []
    for start, end in bounds:
        inside = among[start:end, start:end]
        others = np.delete(among[start:end], slice(start, end), 1)
        if len(inside) > 1:
            apart = inside[~np.eye(len(inside), dtype=bool)].reshape(len(inside), -1)
            nearest, smooth = apart.max(1), _smooth(apart, NEAREST)
        else:
            nearest = smooth = np.zeros(1, np.float32)
        foreign = others.max(1) if others.size else np.zeros(len(inside), np.float32)
        near = to_general[start:end]
        strangers = _smooth(near.T, NEAREST)
        found.append(
            [
                nearest.mean(),
                nearest.std(),
                nearest.min(),
                smooth.mean(),
                foreign.mean(),
                foreign.max(),
                strangers.mean(),
                strangers.std() + 1e-3,
                np.quantile(strangers, STRANGE),
                np.log(len(inside)),
                _smooth(near, NEAREST_GENERAL).mean(),
                (nearest - foreign).mean(),
            ]
        )
    return np.array(found, np.float32)


@dataclass(frozen=True, slots=True)
class Network:
    """Several networks of the same form, whose chances are averaged."""

    weights: Mapping[str, Array]  # [networks, inputs, outputs], and biases [networks, 1, outputs]

    def chances(self, of_adapters: Array, of_request: Array, there: Array) -> Array:
        """[requests, adapters + 1] of [requests, adapters, features], [requests, features] and which adapters
        there are [requests, adapters]."""
        w = self.weights
        own = np.clip((of_adapters - w["mean"]) / w["scale"], -LIMIT, LIMIT)
        shared = np.clip((of_request - w["request_mean"]) / w["request_scale"], -LIMIT, LIMIT)
        seen = np.maximum(self._layers("own", own[None]), 0)
        mask = there[..., None]
        most = np.where(mask, seen, -np.inf).max(2)
        mean = (seen * mask).sum(2) / mask.sum(1)
        joint = np.concatenate([most, mean, np.broadcast_to(shared, (len(seen), *shared.shape))], 2)
        spread = np.broadcast_to(joint[:, :, None], (*seen.shape[:3], joint.shape[2]))
        logits = self._layers("adapter", np.concatenate([seen, spread], 3))[..., 0]
        logits = np.where(there, logits, -np.inf)
        chances: Array = softmax(np.concatenate([logits, self._layers("none", joint)], 2)).mean(0)
        return chances

    def _layers(self, name: str, rows: Array) -> Array:
        """[networks, ..., outputs] by two layers of rows [networks or 1, ..., inputs]."""
        w = self.weights
        flat = rows.reshape(len(rows), -1, rows.shape[-1])
        hidden = np.maximum(flat @ w[f"{name}.0.weight"] + w[f"{name}.0.bias"], 0)
        made: Array = hidden @ w[f"{name}.1.weight"] + w[f"{name}.1.bias"]
        return made.reshape(len(made), *rows.shape[1:-1], made.shape[-1])


@cache
def network() -> Network:
    """The one that is shipped."""
    from safetensors.numpy import load_file

    return Network(load_file(WEIGHTS))
