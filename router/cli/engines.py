"""Engines that are not our own, from settings: what they need is looked for before anything heavy."""

from __future__ import annotations

from pathlib import Path

from router.config import Settings
from router.engine.base import Engine
from router.models import resolve_model


def vllms_base(settings: Settings) -> Path:
    """The base's folder: vLLM serves what our own engine does not, such as quantised weights.

    Raises ConfigError where vLLM is not installed, or settings are not for it, before anything is fetched.
    """
    from router.engine.vllm.arguments import check
    from router.engine.vllm.link import require_vllm

    check(settings)
    require_vllm()
    return resolve_model(settings.model, any_weights=True)


def make_vllm(settings: Settings) -> Engine:
    """vLLM's processes. Nothing of vLLM is imported before the engine is started."""
    from router.engine.vllm.engine import VllmEngine
    from router.engine.vllm.link import connect

    return VllmEngine(settings, connect)
