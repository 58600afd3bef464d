"""Whether the parts of an adapter fit each other and the base."""

from __future__ import annotations

from typing import Any

import pytest

from router.models import DEFAULT_BASE, models_dir
from router.registry.format.checks import check_base, check_targets, plain_name
from router.registry.format.lora_config import LoraSettings
from router.registry.format.manifest import BasePin
from router.registry.format.untrusted import FolderFindings
from tests.registry.tiny import BASE

SITES = [f"model.layers.{i}.{name}" for i in range(3) for name in ("q_proj", "v_proj")]


def codes(weights: list[str], **settings: Any) -> list[str]:
    found = FolderFindings()
    check_targets(LoraSettings(**settings), SITES, weights, found)
    return [f.code for f in found]


Q = [s for s in SITES if s.endswith("q_proj")]


def test_exact_targets_are_silent():
    assert codes(Q, target_modules=("q_proj",)) == []
    assert codes(SITES, target_modules=("q_proj", "v_proj", "not_in_this_base")) == []
    assert codes(SITES[:1], target_modules=("model.layers.0.q_proj",)) == []
    assert codes(SITES[:1], target_modules=("base_model.model.model._orig_mod.layers.0.q_proj",)) == []


def test_a_target_without_weights_is_refused():
    assert codes(Q[:2], target_modules=("q_proj",)) == ["target-without-weights"]


def test_weights_without_a_target_are_refused():
    assert codes(SITES, target_modules=("q_proj",)) == ["weights-without-target"]
    assert codes(Q, target_modules=("proj",)) == ["weights-without-target"]


def test_patterns_leave_it_to_the_tensor_names():
    assert codes(Q[:1], target_modules=None) == []
    assert codes(Q[:1], target_modules=("q_proj",), exclude_modules=None) == []
    assert codes(SITES, target_modules=("q_proj",), exclude_modules=None) == ["weights-without-target"]
    assert codes(Q[:1], target_modules=("q_proj",), layers_to_transform=(0,), layers_pattern=("(a+)+",)) == []


def test_exclusions_and_layers_narrow_the_targets():
    assert codes(Q[1:], target_modules=("q_proj",), exclude_modules=("layers.0.q_proj",)) == []
    assert codes(Q[1:2], target_modules=("q_proj",), layers_to_transform=(1,)) == []
    assert (
        codes(Q[1:2], target_modules=("q_proj",), layers_to_transform=(1,), layers_pattern=("layers",)) == []
    )
    assert codes(Q, target_modules=("q_proj",), layers_to_transform=(1,)) == ["weights-without-target"]


@pytest.mark.parametrize("pattern", [(), ("h",)])
def test_a_layer_is_found_only_as_peft_finds_it(pattern):
    found = FolderFindings()
    sites = ["h.1.q_proj"]
    settings = LoraSettings(target_modules=("q_proj",), layers_to_transform=(1,), layers_pattern=pattern)
    check_targets(settings, sites, sites, found)
    assert [f.code for f in found] == ([] if pattern else ["weights-without-target"])


@pytest.mark.parametrize(
    "trained",
    [
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        str(models_dir() / f"{DEFAULT_BASE}-bcc81830"),
        f"{models_dir() / DEFAULT_BASE}-bcc81830/",
        "/root/.cache/huggingface/hub/models--HuggingFaceTB--SmolLM2-135M-Instruct/snapshots/12fd25f77366fa6b",
        "unsloth/SmolLM2-135M-Instruct-bnb-4bit",
        "C:/models/smollm2-135m-instruct",
    ],
)
def test_the_default_base_by_any_name(trained):
    assert plain_name(trained) == DEFAULT_BASE


@pytest.mark.parametrize(
    "trained", ["HuggingFaceTB/SmolLM2-135M", "/x/smollm2-135m-instruct-bcc81830", "models--a--b"]
)
def test_other_names_stay_other(trained):
    assert plain_name(trained) != DEFAULT_BASE


def test_a_folder_trained_on_the_cached_base_gets_no_note():
    found = FolderFindings()
    check_base(BasePin(), f"/home/me/.cache/lora-router/models/{plain_name(BASE.name)}-0123abcd", BASE, found)
    assert not list(found)
    check_base(BasePin(), "/home/me/other", BASE, found)
    assert [finding.code for finding in found] == ["other-base-name"]
