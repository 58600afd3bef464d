"""`adapters convert` as a command."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.cli.tiny import write_adapter, write_base


@pytest.fixture
def pickled(own_folder):
    write_base(own_folder / "tiny-base")
    folder = write_adapter(own_folder / "in")
    weights = folder / "adapter_model.safetensors"
    torch.save(load_file(weights), folder / "adapter_model.bin")
    weights.unlink()
    return folder


def test_a_pickled_folder_becomes_one_that_is_valid(cli, pickled):
    done = cli("adapters", "convert", pickled, "adapters/m", "--model", "tiny-base")
    assert done.code == 0, done.err
    assert done.out.splitlines()[:2] == ["read adapter_model.bin", "adapters/m"]
    assert cli("adapters", "validate", "adapters/m", "--model", "tiny-base").code == 0
    again = cli("adapters", "convert", pickled, "adapters/m", "--model", "tiny-base")
    assert again.code == 1
    assert "--force" in again.err
    assert cli("adapters", "convert", pickled, "adapters/m", "--model", "tiny-base", "--force").code == 0


def test_what_cannot_be_served_either_way_is_not_written(cli, pickled, own_folder):
    config = pickled / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"peft_type": "LOHA"}))
    done = cli("adapters", "convert", pickled, "adapters/m", "--model", "tiny-base")
    assert done.code == 1
    assert "cannot be served, converted either" in done.err
    assert not (own_folder / "adapters" / "m").exists()
