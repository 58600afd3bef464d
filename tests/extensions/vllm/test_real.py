"""vLLM itself, in an environment that has it: this one, or the one whose Python LORA_TEST_VLLM_PYTHON names.

That environment needs vLLM, this project's dependencies and its extra `dev` (docs/vllm.md makes one).
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

VARIABLE = "LORA_TEST_VLLM_PYTHON"
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def python() -> str:
    """Of an environment with vLLM."""
    said = os.environ.get(VARIABLE)
    if said:
        return said
    if find_spec("vllm") is None:
        pytest.skip(f"vLLM is not installed, and {VARIABLE} names no environment that has it")
    return sys.executable


@pytest.mark.parametrize("what", ["contract", "parity", "failures", "replicas"])
def test_in_its_environment(python: str, what: str) -> None:
    command = (python, "-m", "pytest", "-q", "-n", "0", "-o", "timeout=600", "-s")
    not_ours = ("-p", "no:cacheprovider", "-p", "no:unraisableexception")  # sockets that vLLM leaves open
    done = subprocess.run(
        [*command, *not_ours, f"tests/extensions/vllm/real_{what}.py"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout[-6000:], done.stderr[-4000:], sep="\n")
    assert done.returncode == 0
    assert " passed" in done.stdout
