"""The configured targets and the tensors must tell the same story."""

from __future__ import annotations

from typing import Any

import pytest

from router.registry.format.checks import check_targets
from router.registry.format.findings import Findings
from router.registry.format.lora_config import LoraSettings

SITES = [f"model.layers.{i}.{name}" for i in range(3) for name in ("q_proj", "v_proj")]


def codes(weights: list[str], **settings: Any) -> list[str]:
    found = Findings()
    check_targets(LoraSettings(**settings), SITES, weights, found)
    return [f.code for f in found]


Q = [s for s in SITES if s.endswith("q_proj")]


def test_exact_targets_are_silent() -> None:
    assert codes(Q, target_modules=("q_proj",)) == []
    assert codes(SITES, target_modules=("q_proj", "v_proj", "not_in_this_base")) == []
    assert codes(SITES[:1], target_modules=("model.layers.0.q_proj",)) == []
    assert codes(SITES[:1], target_modules=("base_model.model.model._orig_mod.layers.0.q_proj",)) == []


def test_a_target_without_weights_is_refused() -> None:
    assert codes(Q[:2], target_modules=("q_proj",)) == ["target-without-weights"]


def test_weights_without_a_target_are_refused() -> None:
    assert codes(SITES, target_modules=("q_proj",)) == ["weights-without-target"]
    assert codes(Q, target_modules=("proj",)) == ["weights-without-target"]


def test_patterns_leave_it_to_the_tensor_names() -> None:
    assert codes(Q[:1], target_modules=None) == []
    assert codes(Q[:1], target_modules=("q_proj",), exclude_modules=None) == []
    assert codes(SITES, target_modules=("q_proj",), exclude_modules=None) == ["weights-without-target"]
    assert codes(Q[:1], target_modules=("q_proj",), layers_to_transform=(0,), layers_pattern=("(a+)+",)) == []


def test_exclusions_and_layers_narrow_the_targets() -> None:
    assert codes(Q[1:], target_modules=("q_proj",), exclude_modules=("layers.0.q_proj",)) == []
    assert codes(Q[1:2], target_modules=("q_proj",), layers_to_transform=(1,)) == []
    assert (
        codes(Q[1:2], target_modules=("q_proj",), layers_to_transform=(1,), layers_pattern=("layers",)) == []
    )
    assert codes(Q, target_modules=("q_proj",), layers_to_transform=(1,)) == ["weights-without-target"]


@pytest.mark.parametrize("pattern", [(), ("h",)])
def test_a_layer_is_found_only_as_peft_finds_it(pattern: tuple[str, ...]) -> None:
    found = Findings()
    sites = ["h.1.q_proj"]
    settings = LoraSettings(target_modules=("q_proj",), layers_to_transform=(1,), layers_pattern=pattern)
    check_targets(settings, sites, sites, found)
    assert [f.code for f in found] == ([] if pattern else ["weights-without-target"])
