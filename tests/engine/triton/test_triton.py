"""Triton's operations: in its interpreter, compiled for two kinds of cards, and on a card if there is one."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from router.engine.native import load_ops

CASES = Path(__file__).with_name("cases.py")
installed = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")


def run_cases(**environment: str) -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "--timeout",
        "600",
        str(CASES),
    ]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    done = subprocess.run(
        command, env=kept | environment, capture_output=True, text=True, cwd=Path(__file__).parents[3]
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.timeout(900)
@installed
def test_the_interpreter_agrees_with_plain_torch() -> None:
    run_cases(TRITON_INTERPRET="1")


@pytest.mark.gpu
@pytest.mark.timeout(900)
@installed
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_card_agrees_with_plain_torch() -> None:
    run_cases()


def test_without_it_plain_torch_serves_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("triton", "router.engine.triton.ops"):
        monkeypatch.setitem(sys.modules, name, None)
    ops, text = load_ops(True, "cuda:0", torch.bfloat16, 64)
    assert (ops.name, text) == (
        "torch",
        "torch: Triton is not installed (CUDA builds of torch bring it along)",
    )


def test_it_can_be_switched_off() -> None:
    ops, text = load_ops(False, "cuda:0", torch.bfloat16, 64)
    assert (ops.name, text) == ("torch", "torch: native operations are switched off")
