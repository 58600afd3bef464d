"""What this CPU can run."""

from __future__ import annotations

import platform
from pathlib import Path

_AVX2 = {"avx2", "fma"}
_AVX512 = _AVX2 | {"avx512f", "avx512bw", "avx512vl", "avx512dq"}
# Best first: name, CPU flags as Linux writes them, compiler flags.
LEVELS: dict[str, tuple[set[str], list[str]]] = {
    "avx512-bf16": (
        _AVX512 | {"avx512_bf16"},
        ["-mavx2", "-mfma", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512bf16"],
    ),
    "avx512": (_AVX512, ["-mavx2", "-mfma", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq"]),
    "avx2": (_AVX2, ["-mavx2", "-mfma"]),
}


def identity() -> tuple[str, set[str]]:
    """Model name and flags of the first CPU; empty where the system does not tell."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor(), set()
    fields = dict(line.split(":", 1) for line in text.split("\n\n", 1)[0].splitlines() if ":" in line)
    named = {key.strip(): value.strip() for key, value in fields.items()}
    return named.get("model name", ""), set(named.get("flags", "").split())


def levels() -> list[str]:
    """The instruction sets this CPU has, best first."""
    flags = identity()[1]
    return [name for name, (needed, _) in LEVELS.items() if needed <= flags]
