"""Adapters as folders that vLLM can read, written from checked bytes into a place of our own.

vLLM takes a path and nothing else. The factor of each layer goes into its B, lower ranks are filled up with
zeros, and all numbers are rounded to what the base is served in, as our own engine packs them: one rank, no
patterns, nothing for vLLM to interpret.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import deserialize

from router.engine.base import AdapterArtifact, SiteDelta
from router.engine.checkpoint import float32_of, stored_as
from router.errors import AdapterRejected, ResourceExhausted

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float32]
    Pair = tuple[Array, Array]  # a [rank, inputs], b [outputs, rank]

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
Shapes = Mapping[str, tuple[int, int]]  # (outputs, inputs) of the base's linear layers


class AdapterStaging:
    """Folders below `root`, which nobody else reads or writes; one for each digest."""

    def __init__(self, root: Path, shapes: Shapes, dtype: str) -> None:
        """`dtype`: safetensors' name of what the base is served in."""
        self._root, self._shapes, self._dtype = root, shapes, dtype

    def stage(self, artifact: AdapterArtifact, parts: Sequence[tuple[Path, float]] = ()) -> tuple[Path, int]:
        """The folder, and the bytes of its weights; of a mixture it is made of the `parts`' folders.

        Raises AdapterRejected where a layer is unknown or of another shape, ResourceExhausted.
        """
        folder = self._root / artifact.digest
        try:
            pairs = self._mixed(parts) if artifact.parts else self._pairs(artifact.sites)
            return folder, self._write(folder, dict(pairs))
        except (OSError, MemoryError) as error:
            self.remove(folder)
            raise ResourceExhausted(f"no room to stage adapter {artifact.name!r}") from error

    def zero(self) -> Path:
        """An adapter of rank 1 on the first layer that changes nothing."""
        return self._made("zero", 0.0)

    def loud(self) -> Path:
        """One on all layers that nobody could overhear, with numbers that every dtype has room for."""
        return self._made("loud", 0.05 if self._dtype == "F16" else 1.0)

    def remove(self, folder: Path) -> None:
        """Away with it, if it is there."""
        shutil.rmtree(folder, ignore_errors=True)

    def _made(self, name: str, value: float) -> Path:
        shapes = self._shapes if value else dict([next(iter(self._shapes.items()))])
        folder = self._root / name
        self._write(
            folder,
            {
                site: (np.full((1, inputs), value, np.float32), np.full((outputs, 1), value, np.float32))
                for site, (outputs, inputs) in shapes.items()
            },
        )
        return folder

    def _pairs(self, sites: Mapping[str, SiteDelta]) -> Iterator[tuple[str, Pair]]:
        for site, delta in sites.items():
            shape = self._shapes.get(site)
            if shape is None:
                raise AdapterRejected(f"the base has no linear layer {site!r}")
            a, b = delta.a, delta.b
            if a.shape != (delta.rank, shape[1]) or b.shape != (shape[0], delta.rank):
                raise AdapterRejected(
                    f"{site}: lora_A {list(a.shape)} and lora_B {list(b.shape)} do not fit a layer of "
                    f"{shape[1]} inputs and {shape[0]} outputs"
                )
            scaled = float32_of(b.dtype, b.data).reshape(b.shape) * np.float32(delta.scaling)
            yield site, (float32_of(a.dtype, a.data).reshape(a.shape), scaled)

    def _mixed(self, parts: Sequence[tuple[Path, float]]) -> Iterator[tuple[str, Pair]]:
        """The rows of all A below each other, the columns of all B, weighted, side by side: an exact sum."""
        loaded = [(_read(folder), weight) for folder, weight in parts if weight]
        for site in self._shapes:
            found = [(pairs[site], weight) for pairs, weight in loaded if site in pairs]
            if found:
                b = np.concatenate([pair[1] * np.float32(weight) for pair, weight in found], axis=1)
                yield site, (np.concatenate([pair[0] for pair, _ in found], axis=0), b)

    def _write(self, folder: Path, pairs: Mapping[str, Pair]) -> int:
        if not pairs:
            raise AdapterRejected("the adapter has no weights")
        rank = max(a.shape[0] for a, _ in pairs.values())
        folder.mkdir(mode=0o700, exist_ok=True)
        config: dict[str, Any] = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "r": rank,
            "lora_alpha": rank,
            "lora_dropout": 0.0,
            "bias": "none",
            "target_modules": sorted({site.rpartition(".")[2] for site in pairs}),
        }
        (folder / CONFIG).write_text(json.dumps(config), encoding="utf-8")
        return _write_tensors(folder / WEIGHTS, self._dtype, _named(pairs, rank))


def _named(pairs: Mapping[str, Pair], rank: int) -> Iterator[tuple[str, Array]]:
    for site, (a, b) in pairs.items():
        more = rank - a.shape[0]
        yield f"{PREFIX}{site}.lora_A.weight", np.pad(a, ((0, more), (0, 0)))
        yield f"{PREFIX}{site}.lora_B.weight", np.pad(b, ((0, 0), (0, more)))


def _write_tensors(path: Path, dtype: str, tensors: Iterable[tuple[str, Array]]) -> int:
    """A safetensors file; returns the bytes of its weights."""
    header: dict[str, Any] = {}
    data: list[bytes] = []
    place = 0
    for name, values in tensors:
        stored = stored_as(dtype, values)
        shape = list(values.shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [place, place + len(stored)]}
        place += len(stored)
        data.append(stored)
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        file.writelines(data)
    return place


def _read(folder: Path) -> dict[str, Pair]:
    """What was staged there, by layer."""
    tensors = {
        name: float32_of(tensor["dtype"], tensor["data"]).reshape(tensor["shape"])
        for name, tensor in deserialize((folder / WEIGHTS).read_bytes())  # type: ignore[no-untyped-call]
    }
    ending = ".lora_A.weight"
    sites = [name.removeprefix(PREFIX).removesuffix(ending) for name in tensors if name.endswith(ending)]
    return {
        site: (tensors[f"{PREFIX}{site}.lora_A.weight"], tensors[f"{PREFIX}{site}.lora_B.weight"])
        for site in sites
    }
