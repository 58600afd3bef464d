"""Object stores as adapter sources and adapters folders: `s3://` and all that fsspec has a driver for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.hookspecs import RegisterSource, hookimpl

if TYPE_CHECKING:
    from router.sources.source import AdapterSource
    from router.sources.store import Folders


@hookimpl
def register_adapter_sources(register: RegisterSource) -> None:
    """Every SCHEME:// that no other plugin has."""
    register("*", make_source, make_store)


def make_source(text: str, subfolder: str) -> AdapterSource:
    """One adapter. Raises ConfigError, FailedPrecondition."""
    from router.extensions.object_store.store import Objects

    return Objects(text, subfolder)


def make_store(url: str) -> Folders:
    """All adapters under a prefix. Raises ConfigError, FailedPrecondition."""
    from router.extensions.object_store.store import ObjectStore

    return ObjectStore(url)
