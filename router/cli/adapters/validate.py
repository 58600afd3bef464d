"""`lora-router adapters validate`: everything that is wrong with an adapter folder, at once."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from router.cli import flags

if TYPE_CHECKING:
    from router.config import Settings
    from router.engine.base import BaseInfo
    from router.registry.format.artifact import Validation

Paths = Annotated[list[Path], typer.Argument(metavar="FOLDER...", help="Adapter folders.")]
Model = Annotated[
    str, typer.Option("--model", metavar="MODEL", help="Base to compare with. Default: the one served.")
]
NoBase = Annotated[bool, typer.Option("--no-base", help="Do not compare modules and shapes with a base.")]
Ignore = Annotated[
    list[str] | None,
    typer.Option(
        "--ignore-field", metavar="KEY", help="Unknown key of adapter_config.json to let pass; repeatable."
    ),
]


def validate(
    paths: Paths,
    model: Model = "",
    no_base: NoBase = False,
    ignore_field: Ignore = None,
    json: flags.Json = False,
) -> None:
    """Check adapter folders, without a server.

    Tells everything that is wrong at once. Exit code 1 if any folder is refused.

    \b
    Examples:
      lora-router adapters validate adapters/medical
      lora-router adapters validate --json adapters/*
    """
    from router.cli.output import print_json
    from router.cli.settings import load_settings
    from router.registry.format.artifact import FolderRules, validate_folder
    from router.registry.format.trust import Trust

    settings = load_settings({"model": model} if model else None)
    base = None if no_base else base_for(settings.model, paths)
    ignored = tuple(ignore_field or ())
    trust = Trust.of(settings.require_signed, settings.adapters_lock)
    most = settings.max_rank
    reports = [
        _over_carried(
            validate_folder(p, FolderRules(base, max_rank=most, ignore_fields=ignored, trust=trust)), settings
        )
        for p in paths
    ]
    if json:
        print_json([report.to_json() for report in reports])
    else:
        for report in reports:
            _print_report(report)
    if not all(report.ok for report in reports):
        raise typer.Exit(1)


def _over_carried(report: Validation, settings: Settings) -> Validation:
    """With the version of the carried adapter of its name, where a server has that one below one's own."""
    from router.carried import carried, is_carried
    from router.registry.format.manifest import parse_manifest

    here = Path(report.folder).resolve()
    if settings.bare or settings.adapters_dir or is_carried(Path("adapters"), "adapters"):
        return report
    for file in (path / "adapter.toml" for root in carried("adapters") for path in sorted(root.iterdir())):
        if file.is_file() and file.parent.resolve() != here:
            manifest, _ = parse_manifest(file.read_bytes(), file.parent.name)
            if manifest.name == report.inspection.name:
                return replace(report, covered=manifest.version)
    return report


def base_for(model: str, paths: Sequence[Path]) -> BaseInfo | None:
    """The base to compare these folders with, if it is here; its digest only where a manifest pins one."""
    from router.cli.base_files import find_base, read_base

    folder = find_base(model)
    return read_base(folder, model, any(map(_pins_digest, paths))) if folder else None


def _pins_digest(path: Path) -> bool:
    """Whether the manifest names its base by digest; a manifest that cannot be read is reported later."""
    try:
        base = tomllib.loads((path / "adapter.toml").read_text(encoding="utf-8")).get("base")
    except (OSError, ValueError):
        return False
    return isinstance(base, dict) and bool(base.get("digest"))


def _print_report(report: Validation) -> None:
    from router.cli import units
    from router.cli.output import one_line

    seen = report.inspection
    sites = f"{len(seen.sites)} sites: {', '.join(seen.target_modules)}"
    facts = f"{seen.name}@{seen.version}  rank {seen.rank}  {sites}  {units.size(seen.size_bytes)}"
    if seen.invocation_tokens:
        facts += f"  acts from the tokens {', '.join(map(str, seen.invocation_tokens))} on"
    print(f"{one_line(report.folder)}: {f'ok  {facts}' if report.ok else 'REFUSED'}")
    if report.ok:
        print(f"  routing  {report.routing}")
    for finding in report.findings:
        print(f"  {finding.severity.value}  {finding.code}  {one_line(str(finding))}")
    if not report.base_checked:
        print("  note  modules and shapes were not compared with a base; `lora-router models fetch` gets it")
    if report.ok and not report.values_checked:
        print("  note  values of the weights were not checked")
