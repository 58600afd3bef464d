"""The identity of a base model: what an adapter's manifest binds itself to."""

from __future__ import annotations

import hashlib

import torch
from torch import nn


def base_digest(model: nn.Module) -> str:
    """sha256 hex over every parameter's name, shape and value, tied weights once, by name.

    Values are rounded to bfloat16 first, so that a checkpoint has one digest whether it is
    loaded as bfloat16 or as float32. (As float16 too, unless it holds values below 2**-24.)
    Call it on the model as loaded, before any layer is swapped or wrapped.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters(remove_duplicate=True)):
        values = parameter.detach().to(device="cpu", dtype=torch.bfloat16).contiguous()
        digest.update(f"{name} {tuple(values.shape)}\n".encode())
        digest.update(values.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
