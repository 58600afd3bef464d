"""A disk that is really full, where this user may mount a small one."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from router.errors import ResourceExhausted
from router.extensions.training import train
from router.extensions.training.files import explained

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*past_key_values:FutureWarning"),
]
MOUNT = "mount -t tmpfs -o size={size}k tmpfs {folder}"


def on_a_small_disk(folder: Path, size: int, script: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script with `size` KiB at `folder`, seen by that script alone."""
    folder.mkdir(exist_ok=True)
    inside = ["unshare", "-rm", "sh", "-c"]
    mount = MOUNT.format(size=size, folder=folder)
    try:
        subprocess.run([*inside, mount], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no file system can be mounted here")
    return subprocess.run([*inside, f"{mount} && {script}"], capture_output=True, text=True, check=False)


def command(recipe: Path, output: Path, work: Path) -> str:
    return f"{sys.executable} -m router.cli adapters train {recipe} -o {output} --work {work} --device cpu"


def test_full_while_the_adapter_is_written(recipe: Path, tmp_path: Path) -> None:
    disk, work = tmp_path / "disk", tmp_path / "work"
    ran = on_a_small_disk(disk, 16, f"{command(recipe, disk / 'colours', work)}; echo code $?; ls -A {disk}")
    assert "lora-router: the disk is full: " in ran.stderr, ran.stderr
    assert ran.stdout == "code 1\n"
    resumed = train(recipe, tmp_path / "resumed", resume=True, work=work, device="cpu")
    whole = train(recipe, tmp_path / "whole", work=tmp_path / "other", device="cpu")
    one, other = (load_file(folder / "adapter_model.safetensors") for folder in (resumed, whole))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_full_while_a_checkpoint_is_written(recipe: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    ran = on_a_small_disk(disk, 16, f"{command(recipe, tmp_path / 'colours', disk)}; find {disk} -type f")
    assert "checkpoint.pt was not written; free some space" in ran.stderr, ran.stderr
    assert ran.stdout == ""
    assert not (tmp_path / "colours").exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_what_safetensors_says_of_a_full_disk_is_understood(tmp_path: Path, number: int) -> None:
    text = f"Error while serializing: I/O error: No space left on device (os error {number})"
    with pytest.raises(ResourceExhausted, match="disk is full"), explained(tmp_path):
        raise SafetensorError(text)


def test_other_errors_of_safetensors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(SafetensorError, match="os error 2"), explained(tmp_path):
        save_file({"a": torch.zeros(3)}, tmp_path / "nowhere" / "x.safetensors")
