"""What people get wrong, as `adapters train` answers it: one line that says what to do."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from router.cli.main import run
from router.extensions.training.trainer import Trainer
from tests.extensions.training.tiny import save_base

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*past_key_values:FutureWarning"),
]


@pytest.fixture
def train(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Run the command; returns its exit code and what it said on stderr."""
    monkeypatch.setenv("LORA_ROUTER_DEVICE", "cpu")

    def call(*more: str) -> tuple[int, str]:
        folders = ["-o", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
        code = run(["adapters", "train", str(recipe), *folders, *more])
        return code, capsys.readouterr().err

    return call


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_base_that_is_none(train, recipe: Path, tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    edit(recipe, f'"{tiny_base}"', f'"{tmp_path / "empty"}"')
    code, said = train()
    assert code == 2
    assert str(tmp_path / "empty") in said.splitlines()[-1]


def test_a_checkpoint_of_another_base(
    train, recipe: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer._step

    def stepping(self: Trainer, number: int):
        os.kill(os.getpid(), signal.SIGINT)
        return step(self, number)

    monkeypatch.setattr(Trainer, "_step", stepping)
    code, said = train()
    assert code == 130
    assert "stopped and saved after step 1; go on with the same command and --resume" in said
    monkeypatch.undo()
    other = save_base(tmp_path / "other")
    model = LlamaForCausalLM.from_pretrained(other, dtype=torch.bfloat16)
    model.model.embed_tokens.weight.data.mul_(2)
    model.save_pretrained(other)
    edit(recipe, f'"{tiny_base}"', f'"{other}"')
    code, said = train("--resume")
    assert code == 1
    assert "belongs to another recipe, data or base" in said
