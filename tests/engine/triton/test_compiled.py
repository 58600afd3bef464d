"""Every kernel compiles for cards that are not here, with room for it in a processor's shared memory."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed"),
]
AMPERE, HOPPER = 80, 90
SHARED = {AMPERE: 163 << 10, HOPPER: 227 << 10}  # bytes that one program may have
POINTERS = {"bf16": "*bf16", "fp16": "*fp16", "fp32": "*fp32"}
FLOATS = {"eps", "scale"}
ALWAYS = {"cos": "*fp32", "sin": "*fp32", "weight": "*fp32", "parts": "*fp32", "sums": "*fp32", "z": "*fp32"}
ALWAYS |= dict.fromkeys(("positions", "slots", "context", "starts"), "*i32")
OF_THE_DTYPE = {"x", "y", "q", "qkv", "out", "residual", "gate_up", "k_cache", "v_cache"}
ROUND = {"dim", "width", "inner", "q_stride", "outs", "second", "third"}  # multiples of 16 in a real model
HEAD = {"SPLIT": 256, "BLOCK": 16, "GROUP": 16}
OPTIONS = {
    "decode_splits": {"num_stages": 2},
    "rope_write": {"num_warps": 1},
    "decode_join": {"num_warps": 1},
}
KERNELS: list[tuple[str, dict[str, int]]] = [
    ("rms_norm", {"ADD": False, "WIDTH": 1024}),
    ("rms_norm", {"ADD": True, "WIDTH": 8192}),
    ("silu_mul", {"TILE": 1024}),
    ("rope_write", {"HALF": 64, "BLOCK": 16}),
    ("decode_splits", HEAD | {"DIM": 64, "TILE": 64}),
    ("decode_splits", HEAD | {"DIM": 128, "TILE": 64}),
    ("decode_splits", HEAD | {"DIM": 256, "TILE": 32}),
    ("decode_join", {"DIM": 128, "SPLIT": 256}),
    ("lora_shrink", {"ROWS": 16, "RANKS": 16, "INNER": 64, "SPLIT": 1024}),
    ("lora_expand", {"LAYERS": 1, "ROWS": 16, "RANKS": 16, "TILE": 128}),
    ("lora_expand", {"LAYERS": 3, "ROWS": 16, "RANKS": 16, "TILE": 128}),
]


def kind_of(kernel: str, name: str, dtype: str) -> str:
    """The type of a kernel's argument, as Triton writes it."""
    if name == "table":
        return "*i64" if kernel.startswith("lora") else "*i32"
    if name in FLOATS:
        return "fp32"
    return ALWAYS.get(name) or (POINTERS[dtype] if name in OF_THE_DTYPE else "i32")


@pytest.mark.parametrize("capability", [AMPERE, HOPPER])
@pytest.mark.parametrize("dtype", POINTERS)
@pytest.mark.parametrize(("kernel", "constants"), KERNELS, ids=lambda v: v if isinstance(v, str) else "")
def test_it_compiles(
    kernel: str,
    constants: dict[str, Any],
    dtype: str,
    capability: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from router.engine.triton import kernels

    function = getattr(kernels, kernel)
    known = constants | {"WIDE": dtype == "fp32"}
    signature, fixed, hints = {}, {}, {}
    for index, name in enumerate(function.arg_names):
        if name in known:
            signature[name], fixed[(index,)] = "constexpr", known[name]
            continue
        signature[name] = kind_of(kernel, name, dtype)
        if signature[name].startswith("*") or name in ROUND:
            hints[(index,)] = [["tt.divisibility", 16]]
    made = triton.compile(
        ASTSource(function, signature, fixed, hints),
        target=GPUTarget("cuda", capability, 32),
        options=OPTIONS.get(kernel, {}),
    )
    assert made.metadata.shared <= SHARED[capability]
    assert len(made.asm["cubin"]) > 0
    if dtype != "fp32":  # weights and cache come in words, not number by number
        assert "ld.global.b16" not in made.asm["ptx"]
