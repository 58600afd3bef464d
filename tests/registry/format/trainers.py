"""One folder per trainer, with the files each of them leaves beside the adapter."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from tests.registry.format.corpus import Variant
from tests.registry.format.peft_folders import VOCAB, edit_config, edit_tensors, save, tiny_llama, train


def _tokenizer(folder: Path, added: int = 0) -> None:
    words = {f"w{i}": i for i in range(VOCAB)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")), unk_token="w0"
    )
    tokenizer.add_tokens([f"<new{i}>" for i in range(added)])
    tokenizer.save_pretrained(folder)


def _peft_named(folder: Path, _: Path) -> None:
    model = train()
    model.add_adapter("legal", model.peft_config["default"])
    torch.nn.init.normal_(model.base_model.model.model.layers[0].self_attn.q_proj.lora_B["legal"].weight)
    save(folder, model, selected_adapters=["legal"])


def _several(folder: Path, _: Path) -> None:
    for step in (100, 200):
        save(folder / f"checkpoint-{step}", train())


def _trl(folder: Path, _: Path) -> None:
    save(folder, train())
    _tokenizer(folder)
    (folder / "chat_template.jinja").write_text("{{ messages }}")


def _trl_new_tokens(folder: Path, _: Path) -> None:
    save(folder, train(vocab=VOCAB + 8), save_embedding_layers=True)
    _tokenizer(folder, added=2)


def _resized_and_not_saved(folder: Path, _: Path) -> None:
    save(folder, train(vocab=VOCAB + 8))
    _tokenizer(folder, added=2)


def _axolotl(folder: Path, _: Path) -> None:
    save(folder, train())
    _tokenizer(folder)
    edit_config(folder, nvfp4_merge_aware=True)
    tiny_llama().config.save_pretrained(folder)


def _unsloth(folder: Path, _: Path) -> None:
    save(folder, train())
    edit_config(folder, base_model_name_or_path="unsloth/tiny-llama-unsloth-bnb-4bit")


def _unsloth_merged(folder: Path, _: Path) -> None:
    tiny_llama().save_pretrained(folder)


def _llama_factory(folder: Path, _: Path) -> None:
    save(folder, train())
    _tokenizer(folder)
    (folder / "trainer_log.jsonl").write_text("{}\n")


def _llama_factory_resized(folder: Path, _: Path) -> None:
    save(folder, train(modules_to_save=["lm_head"]))


def _torchtune(folder: Path, _: Path) -> None:
    save(folder, train())
    torch.save({}, folder / "adapter_0.pt")
    save_file({"model.norm.weight": torch.ones(16)}, folder / "ft-model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {}}))


def _torchtune_dora(folder: Path, _: Path) -> None:
    save(folder, train())
    name = "base_model.model.model.layers.0.self_attn.q_proj.magnitude"
    edit_tensors(folder, lambda tensors: {**tensors, name: torch.ones(16)})


def _pickle(folder: Path, _: Path) -> None:
    save(folder, train())
    (folder / "adapter_model.safetensors").unlink()
    torch.save({}, folder / "adapter_model.bin")


def _embedding_targeted(folder: Path, _: Path) -> None:
    save(folder, train(target_modules=["q_proj", "embed_tokens"]), save_embedding_layers="auto")


def _out_final(folder: Path, _: Path) -> None:
    save(folder / "out" / "final", train())
    (folder / "out" / "runs").mkdir()


TRAINERS = (
    Variant("PEFT, in out/final", False, "nested-folder", _out_final, ("out/final",)),
    Variant("PEFT, adapter with a name", False, "nested-folder", _peft_named, ("'legal'",)),
    Variant("PEFT, several", False, "nested-folder", _several, ("checkpoint-100", "checkpoint-200")),
    Variant("PEFT, embedding targeted", False, "tensor-unsupported", _embedding_targeted, ("embedding",)),
    Variant("PEFT, pickle", False, "pickle-weights", _pickle, ("adapter_model.bin", "adapters convert")),
    Variant("TRL", True, "files-ignored", _trl, ("chat_template.jinja",)),
    Variant("TRL, tokens added", False, "full-copy", _trl_new_tokens, ("72 rows", "embed_tokens", "lm_head")),
    Variant(
        "TRL, tokens added and not saved", False, "vocabulary", _resized_and_not_saved, ("<new1>", "64 rows")
    ),
    Variant("Axolotl", True, "config-ignored", _axolotl, ("nvfp4_merge_aware",)),
    Variant("Axolotl's base files", True, "files-ignored", _axolotl, ("base files ignored", "config.json")),
    Variant("Unsloth", True, "", _unsloth),
    Variant("Unsloth, merged", False, "merged-model", _unsloth_merged, ("export the adapter",)),
    Variant("LLaMA-Factory", True, "", _llama_factory),
    Variant(
        "LLaMA-Factory, resized", False, "config-unsupported", _llama_factory_resized, ("modules_to_save",)
    ),
    Variant(
        "torchtune", True, "files-ignored", _torchtune, ("base files ignored", "ft-model-00001-of-00001")
    ),
    Variant("torchtune, DoRA", False, "tensor-unsupported", _torchtune_dora, ("DoRA", "magnitude")),
)
