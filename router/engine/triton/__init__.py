"""Fused operations in Triton for CUDA devices; where they cannot run, plain torch does the same.

Checked in Triton's interpreter and compiled for sm_80 and sm_90; not yet run on a GPU.
"""

from __future__ import annotations

import logging

import torch

from router.engine.torch_ops import TorchOps

log = logging.getLogger(__name__)


def load_triton_ops(device: torch.device, dtype: torch.dtype, head_dim: int) -> tuple[TorchOps, str]:
    """The Triton operations if they run here and agree with plain torch, else plain torch and why."""
    try:
        from router.engine.triton.ops import TritonOps, disagreement
    except ImportError:
        return TorchOps(), "torch: Triton is not installed (CUDA builds of torch bring it along)"
    made = TritonOps()
    try:
        reason = disagreement(made, device, dtype, head_dim)
    except Exception as error:  # whatever a compiler or driver may raise: plain torch serves all the same
        log.warning("Triton's operations do not run on %s", device, exc_info=True)
        reason = f"Triton's operations do not run here: {type(error).__name__}"
    if reason:
        log.warning("no fused operations on %s: %s; the answers are the same, only slower", device, reason)
        return TorchOps(), f"torch: {reason}"
    return made, "triton"
