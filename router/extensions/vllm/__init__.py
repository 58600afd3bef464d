"""The engine `vllm`: its processes hold the base and compute, ours choose adapters and speak with clients.

Only `link` imports vLLM, so everything else is tested without it.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from router.hookspecs import Formerly, RegisterEngine, RegisterSettings, hookimpl

if TYPE_CHECKING:
    from pathlib import Path

    from router import config
    from router.engine.base import Engine


def split_like_a_shell(value: Any) -> Any:
    """Values of arguments may be JSON, which has commas and spaces: quotes keep them whole."""
    return tuple(shlex.split(value)) if isinstance(value, str) else value


class Settings(BaseModel):
    """The table [vllm]."""

    model_config = ConfigDict(frozen=True)

    args: Annotated[tuple[str, ...], BeforeValidator(split_like_a_shell), Formerly("vllm_args")] = Field(
        (), description="arguments of vLLM itself, KEY=VALUE, separated by spaces"
    )


@hookimpl
def register_settings(register: RegisterSettings) -> None:
    """`[vllm]`."""
    register(Settings)


@hookimpl
def register_engines(register: RegisterEngine, settings: Settings) -> None:
    """`serve --engine vllm`."""
    register("vllm", partial(make_engine, settings.args), partial(find_base, settings.args))


def find_base(args: Sequence[str], settings: config.Settings) -> Path:
    """The base's folder: vLLM serves what our own engine does not, such as quantised weights.

    Raises ConfigError where vLLM is not installed, or settings are not for it, before anything is fetched.
    """
    from router.extensions.vllm.arguments import check
    from router.extensions.vllm.link import require_vllm
    from router.models import resolve_model

    check(settings, args)
    require_vllm()
    return resolve_model(settings.model, any_weights=True)


def make_engine(args: Sequence[str], settings: config.Settings) -> Engine:
    """vLLM's processes. Nothing of vLLM is imported before the engine is started."""
    from router.extensions.vllm.engine import VllmEngine
    from router.extensions.vllm.link import connect

    return VllmEngine(settings, partial(connect, args=args))
