"""Adapter folders of this machine, read without a server."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from router.types import AdapterProfile


def profiles() -> list[AdapterProfile]:
    """What the manifests of the adapters that `serve` would find here say for routing, by name."""
    from router.cli.folders import folders
    from router.cli.settings import load_settings
    from router.registry.discovery import Scanner
    from router.registry.manifest import parse_manifest

    found: dict[str, AdapterProfile] = {}
    for folder in Scanner(folders(load_settings().adapters_dir, "adapters")).scan().found:
        path = folder / "adapter.toml"
        manifest, _ = parse_manifest(path.read_bytes() if path.is_file() else None, folder.name)
        found.setdefault(manifest.name, manifest.profile())
    return [found[name] for name in sorted(found)]
