"""What a result stands with: hardware, versions, date; and the table people read."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
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
    name: str, workload: str, rows: Sequence[dict[str, Any]], notes: Sequence[str], **more: Any
) -> Path:
    """Write results/NAME-DATE.json and results/NAME.md; returns the latter. `tables`: more rows by title."""
    RESULTS.mkdir(exist_ok=True)
    now = datetime.now(UTC)
    record = {
        "benchmark": name,
        "date": now.isoformat(timespec="seconds"),
        "hardware": hardware(),
        "versions": versions("torch", "transformers", "peft", "grpcio", "lora-router"),
        "workload": workload,
        "rows": list(rows),
        "notes": list(notes),
        **more,
    }
    (RESULTS / f"{name}-{now:%Y%m%d-%H%M}.json").write_text(json.dumps(record, indent=1) + "\n")
    page = RESULTS / f"{name}.md"
    page.write_text(_page(record))
    return page


def _page(record: dict[str, Any]) -> str:
    machine = record["hardware"]
    head = [
        f"# {record['benchmark']}",
        "",
        f"{record['date']}, {machine['cpu']}, {machine['cores']} cores {' '.join(machine['bf16'])}, "
        f"{machine['memory_gib']} GiB; " + ", ".join(f"{k} {v}" for k, v in record["versions"].items()),
        "",
        record["workload"],
        "",
    ]
    tables = record.get("tables", {}).items()
    further = [line for title, rows in tables for line in (f"## {title}", "", table(rows), "")]
    return "\n".join([*head, table(record["rows"]), "", *further, *[f"- {n}" for n in record["notes"]], ""])


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
