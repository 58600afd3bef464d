"""The engine `vllm`: its processes hold the base and compute, ours choose adapters and speak with clients.

Only `link` imports vLLM, so everything else is tested without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.hookspecs import RegisterEngine, hookimpl

if TYPE_CHECKING:
    from pathlib import Path

    from router.config import Settings
    from router.engine.base import Engine


@hookimpl
def register_engines(register: RegisterEngine) -> None:
    """`serve --engine vllm`."""
    register("vllm", make_engine, find_base)


def find_base(settings: Settings) -> Path:
    """The base's folder: vLLM serves what our own engine does not, such as quantised weights.

    Raises ConfigError where vLLM is not installed, or settings are not for it, before anything is fetched.
    """
    from router.extensions.vllm.arguments import check
    from router.extensions.vllm.link import require_vllm
    from router.models import resolve_model

    check(settings)
    require_vllm()
    return resolve_model(settings.model, any_weights=True)


def make_engine(settings: Settings) -> Engine:
    """vLLM's processes. Nothing of vLLM is imported before the engine is started."""
    from router.extensions.vllm.engine import VllmEngine
    from router.extensions.vllm.link import connect

    return VllmEngine(settings, connect)
