"""Fused operations in C++ for CPUs with AVX2 or AVX-512; where they cannot run, plain torch does the same."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from router.engine.native.build import NotBuilt, cpu_levels, load_module
from router.engine.native.ops import NativeOps
from router.engine.torch_ops import TorchOps
from router.engine.triton import load_triton_ops
from router.errors import install_extra

__all__ = ["NativeOps", "load_ops"]

log = logging.getLogger(__name__)

_HOW = (
    "the answers are the same, only slower; for the fast path install a C++ compiler (g++) and Python's "
    f"headers, run {install_extra('native')}, and start again"
)

_HOW_AHEAD = (
    "the answers are the same, only slower; build them again with this torch and Python, by "
    "python -m router.engine.native.prebuilt FOLDER, or unset native_dir to build them here"
)

LANES = 16  # heads are read so many numbers at a time


def load_ops(
    enabled: bool,
    device: str,
    dtype: torch.dtype,
    head_dim: int = LANES,
    threads: int = 0,
    built_ahead: Path | None = None,
) -> tuple[TorchOps, str]:
    """The fastest operations that run here, and what to tell the operator.

    `head_dim` counts the numbers in a head of the base's attention; 0 threads are as many as there are CPUs
    for this process. The text is "native (avx512-bf16)", "triton" or "torch: why". The first call on a
    machine compiles for about 20 s; with a folder of libraries that were `built_ahead` nothing is compiled.
    """
    if enabled and torch.device(device).type == "cuda":
        return load_triton_ops(torch.device(device), dtype, head_dim)
    reason = _why_not(enabled, device, dtype, head_dim)
    if not reason:
        try:
            if built_ahead is not None:
                from router.engine.native import prebuilt  # also a command, which must not be loaded before

                level, module = prebuilt.load_best(built_ahead, cpu_levels())
            else:
                level, module = cpu_levels()[0], load_module(cpu_levels()[0])
            return NativeOps(module, threads), f"native ({level})"
        except NotBuilt as error:
            reason = str(error)
            detail = f" ({error.detail})" if error.detail else ""
            how = _HOW_AHEAD if built_ahead is not None else _HOW
            log.warning("no native operations: %s%s; %s", reason, detail, how)
    return TorchOps(), f"torch: {reason}"


def _why_not(enabled: bool, device: str, dtype: torch.dtype, head_dim: int) -> str:
    if not enabled:
        return "native operations are switched off"
    if torch.device(device).type != "cpu":
        return f"native operations are for the CPU, this is {device}"
    if dtype not in (torch.float32, torch.bfloat16):
        return f"no native operations for {str(dtype).removeprefix('torch.')}"
    if head_dim % LANES:
        return f"no native operations for heads of {head_dim}, which is no multiple of {LANES}"
    if not cpu_levels():
        return "the CPU has neither AVX2 nor AVX-512"
    return ""
