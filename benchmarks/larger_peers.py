"""How peers start on the weights of `benchmarks.larger`: vLLM for CPU, llama.cpp, transformers and PEFT.

Each is installed on first use into a folder of its own in the user's cache.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from benchmarks import llama_cpp, llama_gguf, peers
from benchmarks.answering import REQUESTS
from benchmarks.contestants import Entry, Missing, ours
from benchmarks.engine import AS_PEFT, AS_SERVED, SERVED
from benchmarks.larger_loads import ADAPTERS, LONGEST
from router.quantities import counted

OURS = "this engine"
MANY_TOKENS = 512  # room for each of 16 requests in llama.cpp


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


def llama(base: Path, kind: str, requests: int, adapters: list[Path]) -> Entry:
    """llama.cpp's server for so many requests at once, with adapters as PEFT folders. Raises Missing."""
    file = llama_gguf.made(base, kind, base.parent)
    loras = [llama_gguf.adapter(base, folder, folder / "adapter.gguf") for folder in adapters]
    tokens = LONGEST if requests == 1 else requests * MANY_TOKENS
    command = llama_cpp.server(file, requests, tokens, loras)
    why = f"{llama_cpp.WHY}; {counted(requests, 'slot')} of {tokens // requests:,} tokens"
    name = f"llama.cpp {kind}, {'1 request' if requests == 1 else f'{requests} requests'}"
    return Entry(name + (", adapters" if loras else ""), command, {}, why)


def transformers(base: Path, adapters: int = 0) -> Entry:
    """transformers alone, or PEFT with so many adapters in one mixed batch."""
    command = ours("contestant_peft", "--model", str(base), "--adapters", str(adapters))
    return Entry("PEFT" if adapters else "transformers", command, {}, AS_PEFT)


def this_engine(base: Path, quantize: str) -> Entry:
    """This engine with 8 adapters in memory."""
    arguments = ("--model", str(base), "--adapters", str(ADAPTERS), "--quantize", quantize)
    name = OURS if quantize == "none" else f"{OURS}, {quantize}"
    return Entry(name, ours("contestant_engine", *arguments), SERVED, AS_SERVED)
