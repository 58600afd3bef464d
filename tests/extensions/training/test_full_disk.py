"""A disk that is really full, where this user may mount a small one."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from router.errors import ResourceExhausted
from router.extensions.training.files import explained
from router.extensions.training.run import train

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*past_key_values:FutureWarning"),
]
# `lora-router adapters train` twice in one process, each with 16 KiB for a folder of its own: first for the
# adapter, then for the checkpoints. Prints both exit codes and the files that are left.
SCRIPT = """
import sys
from pathlib import Path
from router.cli.main import run

recipe, folder = Path(sys.argv[1]), Path(sys.argv[2])
train = ["adapters", "train", str(recipe)]
adapter, checkpoint = folder / "adapter", folder / "checkpoint"
print(run([*train, "-o", str(adapter / "colours"), "--work", str(folder / "work")]))
print(run([*train, "-o", str(folder / "colours"), "--work", str(checkpoint)]))
print([str(path) for disk in (adapter, checkpoint) for path in disk.rglob("*") if path.is_file()])
"""
MOUNTS = (
    'for disk in adapter checkpoint; do mount -t tmpfs -o size=16k tmpfs "$disk" || exit; done; exec "$@"'
)


@pytest.mark.long  # `test_run` and `test_files` have a disk that says so
def test_full_while_the_adapter_or_a_checkpoint_is_written(recipe: Path, tmp_path: Path) -> None:
    for name in ("adapter", "checkpoint"):
        (tmp_path / name).mkdir()
    inside = ["unshare", "-rm", "sh", "-c", MOUNTS, "sh"]  # no other process sees these disks
    try:
        subprocess.run([*inside, "true"], check=True, capture_output=True, cwd=tmp_path)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no file system can be mounted here")
    ran = subprocess.run(
        [*inside, sys.executable, "-c", SCRIPT, str(recipe), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.getcwd(), "LORA_ROUTER_DEVICE": "cpu"},
    )
    adapter, _, checkpoint = ran.stderr.partition("lora-router: the disk is full: ")[2].partition("\n")
    assert adapter, ran.stderr
    assert "checkpoint.pt was not written; free some space" in checkpoint, ran.stderr
    assert ran.stdout.splitlines()[-3:] == ["1", "1", "[]"], ran.stdout
    assert not (tmp_path / "colours").exists()
    resumed = train(recipe, tmp_path / "resumed", resume=True, work=tmp_path / "work", device="cpu")
    whole = train(recipe, tmp_path / "whole", work=tmp_path / "other", device="cpu")
    one, other = (load_file(folder / "adapter_model.safetensors") for folder in (resumed, whole))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_what_safetensors_says_of_a_full_disk_is_understood(tmp_path: Path, number: int) -> None:
    text = f"Error while serializing: I/O error: No space left on device (os error {number})"
    with pytest.raises(ResourceExhausted, match="disk is full"), explained(tmp_path):
        raise SafetensorError(text)


def test_other_errors_of_safetensors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(SafetensorError, match="os error 2"), explained(tmp_path):
        save_file({"a": torch.zeros(3)}, tmp_path / "nowhere" / "x.safetensors")
