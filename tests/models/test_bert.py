"""The sentence encoders' BERT says what transformers' says, bit by bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from transformers import BertConfig, BertModel  # noqa: E402

from router.errors import ConfigError  # noqa: E402
from router.models.bert import Bert  # noqa: E402

IDS = torch.tensor([[2, 5, 6, 7, 3], [2, 9, 3, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=16,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=8,
        initializer_range=0.5,
    )
    model: Any = BertModel(config)
    with torch.no_grad():
        for parameter in model.parameters():  # biases, which begin at 0, and norms, which begin at 1, too
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(tmp_path)
    return tmp_path


def theirs(folder: Path, dtype: Any) -> Any:
    model: Any = BertModel.from_pretrained(folder, dtype=torch.float32)
    return model.to(dtype).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", [1, 2], ids=["whole", "padded"])
def test_it_computes_what_transformers_does(folder: Path, dtype: Any, rows: int) -> None:
    ids, mask = IDS[:rows], MASK[:rows]
    own = Bert(folder)
    own.to(dtype)
    with torch.inference_mode():
        wanted = theirs(folder, dtype)(input_ids=ids, attention_mask=mask).last_hidden_state
        found = own(ids, mask)
    assert found.dtype == dtype
    assert torch.equal(found[mask.bool()], wanted[mask.bool()])


def test_a_change_of_a_layer_is_added(folder: Path) -> None:
    name, change = "encoder.layer.1.attention.self.value", torch.full((32, 32), 0.25)
    own, model = Bert(folder), theirs(folder, torch.float32)
    own.add(name, change)
    with torch.inference_mode():
        model.get_parameter(f"{name}.weight").add_(change)
        wanted = model(input_ids=IDS[:1]).last_hidden_state
        assert torch.equal(own(IDS[:1], MASK[:1]), wanted)


@pytest.mark.parametrize("entry", [{"model_type": "mpnet"}, {"hidden_act": "relu"}], ids=str)
def test_another_kind_of_model_is_refused(folder: Path, entry: dict[str, str]) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | entry))
    with pytest.raises(ConfigError, match="is no BERT with exact GELUs"):
        Bert(folder)
