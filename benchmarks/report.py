"""A result with hardware, versions and date: its page, or its section of a page, is of the newest run."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

RESULTS = Path(__file__).parent / "results"


def hardware() -> dict[str, Any]:
    """Processor, cores and memory of this machine."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    lines = [line for line in info.splitlines() if line.startswith("model name")]
    flags = next((line for line in info.splitlines() if line.startswith("flags")), "").split()
    return {
        "cpu": lines[0].split(":", 1)[1].strip() if lines else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "bf16": [f for f in ("avx512_bf16", "amx_bf16") if f in flags],
    }


def versions(*packages: str) -> dict[str, str]:
    """Installed versions."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def write(
    name: str,
    workload: str,
    rows: Sequence[dict[str, Any]],
    notes: Sequence[str],
    tables: Mapping[str, Sequence[dict[str, Any]]] | None = None,
    page: str = "",
    **about: str,
) -> Path:
    """Write results/NAME.md, or section NAME of results/PAGE.md, in place of an earlier one.

    `tables`: more rows by title; `about`: more notes.
    """
    machine = hardware()
    used = versions("torch", "transformers", "peft", "grpcio", "lora-router")
    level = "##" if page else "#"
    lines = [
        f"{level} {name}",
        "",
        f"{datetime.now(UTC).isoformat(timespec='seconds')}, {machine['cpu']}, {machine['cores']} cores "
        f"{' '.join(machine['bf16'])}, {machine['memory_gib']} GiB; "
        + ", ".join(f"{package} {number}" for package, number in used.items()),
        *("", workload, "", table(rows), ""),
    ]
    for title, more in (tables or {}).items():
        lines += [f"{level}# {title}", "", table(more), ""]
    lines += [f"- {note}" for note in (*notes, *(f"{what}: {said}" for what, said in about.items()))]
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{page or name}.md"
    text = "\n".join([*lines, ""])
    file.write_text(_with_section(file, text) if page else text)
    return file


def _with_section(file: Path, text: str) -> str:
    """The page with this section in place of the one of the same heading, or at its end."""
    whole = file.read_text() if file.exists() else f"# {file.stem}\n"
    parts = re.split(r"^(?=## )", whole, flags=re.MULTILINE)
    heading = text.splitlines()[0]
    at = next((i for i, part in enumerate(parts) if part.splitlines()[:1] == [heading]), len(parts))
    parts[at : at + 1] = [text]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A Markdown table."""
    if not rows:
        return ""
    names = list(rows[0])
    cells = [[_cell(row[n]) for n in names] for row in rows]
    widths = [max(len(n), *(len(c[i]) for c in cells)) for i, n in enumerate(names)]

    def line(values: Sequence[str]) -> str:
        return "| " + " | ".join(v.ljust(w) for v, w in zip(values, widths, strict=True)) + " |"

    return "\n".join([line(names), line(["-" * w for w in widths]), *map(line, cells)])


def _cell(value: Any) -> str:
    return (
        f"{value:.3g}"
        if isinstance(value, float) and abs(value) < 100
        else (f"{value:.0f}" if isinstance(value, float) else str(value))
    )


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": median(values), "min": min(values), "max": max(values)}


def quantile(values: Sequence[float], part: float) -> float:
    """The value below which so large a part lies; 0 of nothing."""
    return sorted(values)[min(int(part * len(values)), len(values) - 1)] if values else 0.0
