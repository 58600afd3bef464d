"""Mixtures against the changes that their parts make, on a tiny base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from router.errors import ConfigError, FailedPrecondition, RouterError
from router.extensions.training.merge import METHODS, SAME_RANK, SOURCES, MergeRequest, MergeSource, merge
from router.registry.format.artifact import FolderRules, inspect_folder
from router.registry.format.untrusted import MAX_RANK

MANIFEST = """
[adapter]
name = "{name}"
domain = "{name}"
[prompt]
system = "As {name}."
[generation]
max_tokens = 7
choices = ["yes", "no"]
[routing]
examples = ["one of {name}", "of both"]
negative_examples = ["one of legal"]
keywords = ["{name}"]
"""
CLOSE = 0.02  # of the largest change: bfloat16 on disk


def write_adapter(folder: Path, base: Path, rank: int = 4, seed: int = 0) -> Path:
    """Random weights as PEFT saves them, with a manifest."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    config = LoraConfig(
        r=rank, lora_alpha=8, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM",
        init_lora_weights=False,
    )  # fmt: skip
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "adapter.toml").write_text(MANIFEST.format(name=folder.name))
    return folder


def changes(base: Path, folder: Path) -> dict[str, Any]:
    """What the adapter adds to each weight, float32 [outputs, inputs]."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(folder))
    return {
        name: module.get_delta_weight("default").float()
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }


@pytest.fixture
def parts(tmp_path: Path, tiny_base: Path) -> tuple[Path, Path]:
    adapters = tmp_path / "adapters"
    return (
        write_adapter(adapters / "legal", tiny_base, seed=1),
        write_adapter(adapters / "financial", tiny_base, seed=2),
    )


def wish(parts: tuple[Path, Path], base: Path, **more: Any) -> MergeRequest:
    sources = (MergeSource(parts[0], 0.6), MergeSource(parts[1], -0.3))
    values = {"name": "advisor", "sources": sources, "output": parts[0].parent / "advisor", "base": str(base)}
    return MergeRequest(**(values | more))


def silent(text: str) -> None:
    """Say nothing."""


def test_cat_adds_the_changes_exactly(parts: tuple[Path, Path], tiny_base: Path) -> None:
    made = changes(tiny_base, merge(wish(parts, tiny_base), "cpu", silent))
    legal, financial = (changes(tiny_base, part) for part in parts)
    assert made.keys() == legal.keys()
    for name, change in made.items():
        wanted = 0.6 * legal[name] - 0.3 * financial[name]
        assert (change - wanted).abs().max() <= CLOSE * wanted.abs().max()


def test_activated_loras_mix_among_themselves_only(parts: tuple[Path, Path], tiny_base: Path) -> None:
    def act_from(folder: Path, tokens: list[int] | None) -> None:
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"alora_invocation_tokens": tokens}))

    act_from(parts[0], [1, 2])
    for other in (None, [1, 3]):
        act_from(parts[1], other)
        with pytest.raises(ConfigError, match=r"legal \[1, 2\], financial"):
            merge(wish(parts, tiny_base), "cpu", silent)
    act_from(parts[1], [1, 2])
    folder = merge(wish(parts, tiny_base), "cpu", silent)
    assert inspect_folder(folder, FolderRules(None, max_rank=MAX_RANK)).invocation_tokens == (1, 2)


def test_svd_is_the_nearest_of_its_rank(parts: tuple[Path, Path], tiny_base: Path) -> None:
    import torch

    folder = merge(wish(parts, tiny_base, method="svd", rank=3), "cpu", silent)
    assert inspect_folder(folder, FolderRules(None, max_rank=MAX_RANK)).rank == 3
    legal, financial = (changes(tiny_base, part) for part in parts)
    for name, change in changes(tiny_base, folder).items():
        wanted = 0.6 * legal[name] - 0.3 * financial[name]
        left = float(torch.linalg.svdvals(wanted)[3:].square().sum().sqrt())
        assert float((change - wanted).norm()) <= left + CLOSE * float(wanted.norm())


@pytest.mark.parametrize("method", METHODS)
def test_every_method_makes_a_folder_that_can_be_served(
    method: str, parts: tuple[Path, Path], tiny_base: Path
) -> None:
    folder = merge(wish(parts, tiny_base, method=method), "cpu", silent)
    seen = inspect_folder(folder, FolderRules(None, max_rank=MAX_RANK))
    assert seen.ok, seen.error
    assert seen.rank == (8 if method == "cat" else 4)
    assert {path.name for path in folder.iterdir()} == {
        "adapter.toml", "adapter_config.json", "adapter_model.safetensors", SOURCES,
    }  # fmt: skip


def test_dare_draws_by_its_seed(parts: tuple[Path, Path], tiny_base: Path) -> None:
    asked = wish(parts, tiny_base, method="dare_linear", force=True)
    weights = [
        (merge(wish(parts, tiny_base, method="dare_linear", force=True, seed=seed), "cpu", silent)
         / "adapter_model.safetensors").read_bytes()
        for seed in (1, 1, 2)
    ]  # fmt: skip
    assert asked.density == 0.5
    assert weights[0] == weights[1] != weights[2]


def test_manifest_is_the_firsts_with_what_routing_learns_from_all(
    parts: tuple[Path, Path], tiny_base: Path
) -> None:
    folder = merge(wish(parts, tiny_base, version="2.0.0"), "cpu", silent)
    said = inspect_folder(folder, FolderRules(None, max_rank=MAX_RANK)).manifest
    assert (said.name, said.version, said.domain) == ("advisor", "2.0.0", "legal")
    assert said.prompt.system == "As legal."
    assert said.generation.max_tokens == 7
    assert said.generation.constraint is not None
    assert said.routing.examples == ("one of legal", "one of financial", "of both")
    assert said.routing.negative_examples == ()
    assert said.routing.keywords == ("legal", "financial")
    way, *mixed = [json.loads(line) for line in (folder / SOURCES).read_text().splitlines()]
    assert way == {"method": "cat"}
    assert [(one["name"], one["weight"]) for one in mixed] == [("legal", 0.6), ("financial", -0.3)]
    assert len(said.base.digest) == 64


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"name": "No Name"}, "the name 'No Name' must be"),
        ({"version": "x y"}, "--version 'x y' must be"),
        ({"method": "magic"}, "--method 'magic': there are cat, linear"),
        ({"density": 0.0}, "--density is 0.0"),
        ({"rank": 4}, "--rank is for methods that end in svd, cat has its own"),
    ],
)
def test_what_cannot_be_asked_for(
    more: dict[str, Any], message: str, parts: tuple[Path, Path], tiny_base: Path
) -> None:
    with pytest.raises(ConfigError) as raised:
        merge(wish(parts, tiny_base, **more), "cpu", silent)
    assert raised.value.message.startswith(message)


@pytest.mark.parametrize("weight", [0.0, float("nan"), float("inf")])
def test_a_weight_is_a_number(weight: float, parts: tuple[Path, Path], tiny_base: Path) -> None:
    sources = (MergeSource(parts[0]), MergeSource(parts[1], weight))
    with pytest.raises(ConfigError, match="a weight is a number other than 0"):
        merge(wish(parts, tiny_base, sources=sources), "cpu", silent)


def test_one_is_no_mixture_and_a_file_no_adapter(parts: tuple[Path, Path], tiny_base: Path) -> None:
    with pytest.raises(ConfigError, match="two adapters at least"):
        merge(wish(parts, tiny_base, sources=(MergeSource(parts[0]),)), "cpu", silent)
    sources = (MergeSource(parts[0]), MergeSource(parts[0] / "adapter.toml"))
    with pytest.raises(ConfigError, match="is no adapter folder"):
        merge(wish(parts, tiny_base, sources=sources), "cpu", silent)


@pytest.mark.parametrize("method", SAME_RANK)
def test_ranks_that_differ_need_cat_or_svd(method: str, tmp_path: Path, tiny_base: Path) -> None:
    mixed = write_adapter(tmp_path / "a", tiny_base, rank=2), write_adapter(tmp_path / "b", tiny_base, rank=4)
    with pytest.raises(ConfigError, match="these have a 2, b 4: use cat or a svd"):
        merge(wish(mixed, tiny_base, method=method), "cpu", silent)
    assert (
        inspect_folder(
            merge(wish(mixed, tiny_base), "cpu", silent), FolderRules(None, max_rank=MAX_RANK)
        ).rank
        == 6
    )


def test_nothing_is_written_over_or_left_behind(parts: tuple[Path, Path], tiny_base: Path) -> None:
    folder = merge(wish(parts, tiny_base), "cpu", silent)
    before = (folder / "adapter_model.safetensors").read_bytes()
    with pytest.raises(FailedPrecondition, match="exists"):
        merge(wish(parts, tiny_base, method="svd"), "cpu", silent)
    assert (folder / "adapter_model.safetensors").read_bytes() == before
    (parts[1] / "adapter.toml").write_text(f'[base]\ndigest = "{"0" * 64}"\n')
    with pytest.raises(FailedPrecondition, match="trained on a base with digest 000000000000"):
        merge(wish(parts, tiny_base, force=True), "cpu", silent)
    (parts[1] / "adapter.toml").write_text('[prompt]\ntemplate = "none"\n')
    with pytest.raises(RouterError, match="would not be served"):
        merge(wish(parts, tiny_base, force=True), "cpu", silent)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["advisor", "financial", "legal"]
    assert (folder / "adapter_model.safetensors").read_bytes() == before
