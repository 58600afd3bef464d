"""What vLLM reads of an adapter: one rank, factors in B, numbers as the base has them, in our own place."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from router.engine.base import AdapterArtifact, SiteDelta
from router.engine.checkpoint import float32_of
from router.errors import AdapterRejected, ResourceExhausted
from router.extensions.vllm.staging import CONFIG, WEIGHTS, AdapterStaging
from tests.extensions.vllm.script import SITES, artifact, tensor

Q, UP = SITES
NAME = "base_model.model.{}.lora_{}.weight"


def staged(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    return json.loads((folder / CONFIG).read_text()), load_file(folder / WEIGHTS)


def test_the_factor_is_in_b_and_the_configuration_leaves_nothing_to_interpret(tmp_path: Path) -> None:
    adapter = artifact()
    folder, size = AdapterStaging(tmp_path, SITES, "F32").stage(adapter)
    config, weights = staged(folder)
    assert folder == tmp_path / adapter.digest
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (2, 2, ["q_proj"])
    assert config["bias"] == "none"
    delta = adapter.sites[Q]
    assert np.array_equal(weights[NAME.format(Q, "A")], float32_of("F32", delta.a.data).reshape(2, 4))
    assert np.array_equal(weights[NAME.format(Q, "B")], 0.5 * float32_of("F32", delta.b.data).reshape(6, 2))
    assert size == 4 * (2 * 4 + 6 * 2)


def test_lower_ranks_are_filled_up_with_zeros(tmp_path: Path) -> None:
    low = SiteDelta(tensor((1, 4), 1), tensor((8, 1), 1), 1.0)
    adapter = replace(artifact(), sites={**artifact().sites, UP: low})
    _, weights = staged(AdapterStaging(tmp_path, SITES, "F32").stage(adapter)[0])
    assert weights[NAME.format(UP, "A")].tolist() == [[1, 2, 3, 4], [0, 0, 0, 0]]
    assert weights[NAME.format(UP, "B")][:, 1].tolist() == [0] * 8


def test_numbers_are_those_of_the_base(tmp_path: Path) -> None:
    folder, size = AdapterStaging(tmp_path, SITES, "BF16").stage(artifact())
    with safe_open(folder / WEIGHTS, "np") as file:
        assert file.get_slice(NAME.format(Q, "B")).get_dtype() == "BF16"
    assert size == 2 * (2 * 4 + 6 * 2)


def test_a_mixture_is_the_weighted_sum_of_what_was_staged(tmp_path: Path) -> None:
    staging = AdapterStaging(tmp_path, SITES, "F32")
    one, two = artifact("one"), artifact("seven", rank=1)
    parts = [(staging.stage(each)[0], weight) for each, weight in ((one, 0.5), (two, -2.0))]
    mixture = AdapterArtifact("mixture", "", "5e" * 32, {}, ((one.digest, 0.5), (two.digest, -2.0)))
    config, weights = staged(staging.stage(mixture, parts)[0])
    assert config["r"] == 3

    def product(folder: Path) -> Any:
        found = load_file(folder / WEIGHTS)
        return found[NAME.format(Q, "B")] @ found[NAME.format(Q, "A")]

    wanted = 0.5 * product(parts[0][0]) - 2.0 * product(parts[1][0])
    assert np.array_equal(weights[NAME.format(Q, "B")] @ weights[NAME.format(Q, "A")], wanted)


def test_nobody_else_reads_it(tmp_path: Path) -> None:
    folder, _ = AdapterStaging(tmp_path, SITES, "F32").stage(artifact())
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / WEIGHTS).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("sites", "said"),
    [
        ({"model.layers.9.q_proj": artifact().sites[Q]}, "no linear layer"),
        ({Q: SiteDelta(tensor((2, 2), 0), tensor((6, 2), 0), 1.0)}, "do not fit a layer of 4 inputs"),
        ({}, "has no weights"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, sites: Any, said: str) -> None:
    with pytest.raises(AdapterRejected, match=said):
        AdapterStaging(tmp_path, SITES, "F32").stage(replace(artifact(), sites=sites))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_no_fault_of_the_adapter(tmp_path: Path) -> None:
    with pytest.raises(ResourceExhausted, match="no room to stage"):
        AdapterStaging(tmp_path / "gone", SITES, "F32").stage(artifact())
