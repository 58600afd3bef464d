"""Whether an adapter was trained on the base that is served."""

from __future__ import annotations

import re

from router.engine.base import BaseInfo
from router.registry.format.codes import Code
from router.registry.format.findings import Findings
from router.registry.format.manifest import BasePin
from router.registry.format.table import MANIFEST
from router.registry.format.text import show

_QUANTISED = re.compile(r"([-_](unsloth|bnb|nf4|fp4|fp8|int8|int4|[48]bit|gptq|awq|gguf|bf16|fp16))+$")

_CACHED = re.compile(r"lora-router/models/([^/]+)-[0-9a-f]{8}/?$")  # as router.models keeps a known base
_HUB = re.compile(r"/models--(?:[^/]+?--)?([^/]+)/snapshots/[^/]+/?$")  # as huggingface_hub keeps a model


def check_base(pin: BasePin, configured: str, base: BaseInfo, found: Findings) -> None:
    """A pinned digest must be the base's; without one another name is noted and shapes decide."""
    if pin.digest:
        if pin.digest != base.digest.removeprefix("sha256:"):
            message = (
                f"was trained on the base {pin.digest}, this server has {base.digest} ({show(base.name)})"
            )
            found.refuse(Code.OTHER_BASE, message, f"{MANIFEST} [base] digest")
        return
    trained = pin.model or configured
    if trained and plain_name(trained) != plain_name(base.name):
        message = f"was trained on {show(trained, 160)}, is served on {show(base.name, 160)}"
        found.note(Code.OTHER_BASE_NAME, message)


def plain_name(model: str) -> str:
    """A model's name without owner, path, case and marks of quantisation; also of a folder in a cache.

    >>> plain_name("unsloth/SmolLM2-135M-Instruct-unsloth-bnb-4bit")
    'smollm2-135m-instruct'
    >>> plain_name("/root/.cache/lora-router/models/smollm2-135m-instruct-bcc81830")
    'smollm2-135m-instruct'
    """
    cached = _CACHED.search(model) or _HUB.search(model)
    name = (cached[1] if cached else model.rstrip("/").rpartition("/")[2]).lower()
    return _QUANTISED.sub("", name)
