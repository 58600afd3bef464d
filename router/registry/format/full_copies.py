"""Whole matrices of the base that were saved along with an adapter.

Targeting an embedding or resizing the vocabulary makes PEFT save them. One that equals the base's is dropped
and said so; any other would have to replace the shared base's and is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from router.engine.base import TensorData
from router.registry.format.codes import Code
from router.registry.format.findings import Findings
from router.registry.format.safetensors_header import WEIGHTS, TensorEntry
from router.registry.format.tensors import tensor_data
from router.registry.format.text import show, some

# (module path, whole matrix) -> whether it equals the base's, bit for bit
EqualsBase = Callable[[str, TensorData], bool]
_WAY_OUT = (
    "only LoRA weights can be served over a shared base; save again with save_embedding_layers=False, "
    "without modules_to_save and with the base's own vocabulary"
)


def refuse_full(full: Mapping[str, TensorEntry], why: str, found: Findings) -> None:
    """Refuse whole matrices, naming modules and rows."""
    if full:
        names = some(f"{module} ({entry.shape[0]} rows)" for module, entry in full.items())
        found.refuse(Code.FULL_COPY, f"whole weights of {names} {why}: {_WAY_OUT}", WEIGHTS)


def drop_equal(
    full: Mapping[str, TensorEntry], file: memoryview, equals_base: EqualsBase, found: Findings
) -> None:
    """Note the matrices that equal the base's, refuse the others."""
    equal = {m: e for m, e in full.items() if equals_base(m, tensor_data(e, file))}
    for module, entry in equal.items():
        message = f"{show(module, 120)} equals the base's, {entry.end - entry.start} bytes dropped"
        found.note(Code.FULL_COPY_DROPPED, message, WEIGHTS)
    refuse_full({m: e for m, e in full.items() if m not in equal}, "differ from the base's", found)
