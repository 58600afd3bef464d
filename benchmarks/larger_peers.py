"""How peers start on the weights of `benchmarks.larger`: vLLM for CPU, llama.cpp, transformers and PEFT.

Each is installed on first use into a folder of its own in the user's cache.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks import larger_gguf, peers
from benchmarks.answering import REQUESTS
from benchmarks.contestants import ROOT, Entry, ours, physical_cores
from benchmarks.engine import AS_PEFT, AS_SERVED, SERVED
from benchmarks.larger_loads import ADAPTERS, LONGEST
from benchmarks.larger_shapes import Shape
from router.folders import cache_folder

OURS = "this engine"
NODE = "node-llama-cpp"  # its packages carry llama.cpp built for each kind of processor
NODE_VERSION = "3.22.1"


class Missing(Exception):
    """A peer that cannot be had here, and why."""


def vllm(base: Path, folders: list[Path]) -> Entry:
    """vLLM as its page on CPUs has it, bound to all cores: with less it was slower in `make bench-peers`."""
    try:
        python = peers.environment()
    except (OSError, subprocess.CalledProcessError) as error:
        raise Missing(f"{peers.PACKAGE} cannot be installed: {error}") from error
    command = [str(python), "-m", "benchmarks.peer_vllm", str(base), "bfloat16", str(REQUESTS)]
    command += [*map(str, folders), "--longest", str(LONGEST)]
    settings = peers.advised(python, peers.all_cores())
    why = (
        "VLLM_CPU_OMP_THREADS_BIND (all cores), VLLM_CPU_KVCACHE_SPACE and LD_PRELOAD as vLLM's page on CPUs"
    )
    if "tcmalloc" not in settings["LD_PRELOAD"]:
        why += "; without TCMalloc, which it recommends: not installed here"
    return Entry("vLLM", command, settings, why)


def llama(shape: Shape, base: Path, kind: str) -> Entry:
    """llama.cpp by node-llama-cpp, on as many threads as there are cores; else its defaults."""
    packages = node_packages()
    libraries = next((packages / "@node-llama-cpp").glob("linux-*/bins/*"), None)
    if libraries is None:
        raise Missing(f"{NODE} has no llama.cpp for this machine")
    try:
        file = larger_gguf.made(shape, base, kind, libraries)
    except (RuntimeError, OSError) as error:
        raise Missing(str(error)) from error
    arguments = (str(packages), str(file), str(REQUESTS), str(LONGEST), str(physical_cores()))
    command = ["node", str(ROOT / "benchmarks" / "peer_llama.mjs"), *arguments]
    why = f"threads: all cores, else its defaults; {NODE} makes a batch of the requests that wait just then"
    return Entry(f"llama.cpp {kind}", command, {}, why)


def node_packages() -> Path:
    """The folder node_modules that has node-llama-cpp, installed on first use. Raises Missing."""
    root = cache_folder() / "peers" / f"{NODE}-{NODE_VERSION}"
    done = root / "installed"
    if done.exists():
        return root / "node_modules"
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        raise Missing("llama.cpp comes by npm, and there is no node or npm here")
    print(f"installing {NODE} {NODE_VERSION} into {root} (once)", file=sys.stderr)
    root.mkdir(parents=True, exist_ok=True)
    (root / "package.json").write_text('{"private": true}')
    machine = {"x86_64": "x64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
    names = (f"{NODE}@{NODE_VERSION}", f"@{NODE}/linux-{machine}@{NODE_VERSION}")
    command = [npm, "install", "--omit=optional", "--ignore-scripts", "--no-audit", "--no-fund", *names]
    try:
        subprocess.run(command, cwd=root, check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["no message"])[-1]
        raise Missing(f"{NODE} cannot be installed: {last}") from error
    done.touch()
    return root / "node_modules"


def transformers(base: Path, adapters: int = 0) -> Entry:
    """transformers alone, or PEFT with so many adapters in one mixed batch."""
    command = ours("contestant_peft", "--model", str(base), "--adapters", str(adapters))
    return Entry("PEFT" if adapters else "transformers", command, {}, AS_PEFT)


def this_engine(base: Path, quantize: str) -> Entry:
    """This engine with 8 adapters in memory."""
    arguments = ("--model", str(base), "--adapters", str(ADAPTERS), "--quantize", quantize)
    name = OURS if quantize == "none" else f"{OURS}, {quantize}"
    return Entry(name, ours("contestant_engine", *arguments), SERVED, AS_SERVED)
