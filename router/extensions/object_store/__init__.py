"""Object stores as adapter sources: `s3://`, and others that fsspec has a driver for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.hookspecs import RegisterSource
from router.markers import hookimpl

if TYPE_CHECKING:
    from router.sources.source import AdapterSource


@hookimpl
def register_adapter_sources(register: RegisterSource) -> None:
    """Every SCHEME:// that no other plugin has."""
    register("*", make_source)


def make_source(text: str, subfolder: str) -> AdapterSource:
    """One adapter. Raises ConfigError, FailedPrecondition."""
    from router.extensions.object_store.store import Objects

    return Objects(text, subfolder)
