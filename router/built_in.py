"""Which built-in plugins there are. Nothing of them is imported, and nothing else."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parent
EXTENSIONS = PACKAGE / "extensions"


def built_in_modules() -> dict[str, Path]:
    """Names of modules, and their files: `plugin.py` of parts of the core, then what is in `extensions`."""
    parts = {f"router.{path.parent.name}.plugin": path for path in PACKAGE.glob("*/plugin.py")}
    files = {path.stem: path for path in EXTENSIONS.glob("*.py")}
    folders = {path.parent.name: path for path in EXTENSIONS.glob("*/__init__.py")}
    found = {**files, **folders}
    return {
        **dict(sorted(parts.items())),
        **{f"router.extensions.{name}": found[name] for name in sorted(found) if name[0] != "_"},
    }


def has_experiments() -> bool:
    """Whether experiments are installed."""
    return (PACKAGE / "experiments" / "plugin.py").is_file()


def name_of(module: str) -> str:
    """The name of the plugin.

    >>> name_of("router.experiments.plugin"), name_of("router.extensions.otel")
    ('experiments', 'otel')
    """
    return module.removesuffix(".plugin").rpartition(".")[2]
