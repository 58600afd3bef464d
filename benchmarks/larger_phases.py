"""Where the time of a start goes: `lora-router serve` with a clock around its phases, until it is ready.

Started as `python -m benchmarks.larger_phases serve FLAGS`. A line of JSON on standard output has the phases:
{"name", "depth", "seconds", "rss", "anonymous"}, in the order of their ends, memory in bytes at that moment.
A function that this version of the engine does not have is left out.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

BEGUN = time.time()
PHASES = (
    ("settings and flags", "router.cli.settings", "load_settings"),
    ("plugins", "router.cli.compose", "host_of"),
    ("import of the engine (torch)", "router.cli.engines", "make_engine"),
    ("engine", "router.engine.torch_engine", "TorchEngine._start"),
    ("config and files", "router.engine.torch_engine", "open_base"),
    ("import of transformers' model classes", "transformers.models.auto.auto_factory", "_get_model_class"),
    ("tokenizer", "transformers", "AutoTokenizer.from_pretrained"),
    ("digest, in a thread", "router.engine.checkpoint", "BaseFiles._hash"),
    ("templates, in a thread", "router.engine.torch_engine", "PromptEncoder"),
    ("native operations", "router.engine.torch_engine", "load_ops"),
    ("packing", "router.engine.torch_engine", "TorchEngine._backbone"),
    ("panels", "router.engine.native.ops", "NativeOps.pack_files"),
    ("waiting for the digest", "router.engine.checkpoint", "BaseFiles.digest"),
    ("step loop", "router.engine.torch_engine", "TorchEngine._step_loop"),
    ("collecting garbage", "router.cli.compose", "keep"),
    ("adapters", "router.registry.registry", "Registry.start"),
    ("classifiers", "router.routing.router", "Router.start"),
    ("adapters loaded ahead", "router.registry.registry", "Registry.settled"),
)
found: list[dict[str, Any]] = []
depth = 0


def memory() -> dict[str, int]:
    """Resident bytes of this process, and those of them that no file backs."""
    with open("/proc/self/status", encoding="ascii") as status:
        lines = dict(line.split(":", 1) for line in status if ":" in line)
    names = {"rss": "VmRSS", "anonymous": "RssAnon", "peak": "VmHWM"}
    return {name: int(lines[field].split()[0]) << 10 for name, field in names.items()}


def note(name: str, seconds: float, at: int) -> None:
    """One phase that has ended; a phase that comes again is added to its first."""
    for known in found:
        if known["name"] == name and known["depth"] == at:
            known["seconds"] += seconds
            known.update(memory())
            return
    found.append({"name": name, "depth": at, "seconds": seconds} | memory())


def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function with a clock."""

    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def wait(*arguments: Any, **named: Any) -> Any:
            begin = time.perf_counter()
            try:
                return await function(*arguments, **named)
            finally:
                note(name, time.perf_counter() - begin, 0)

        return wait

    @functools.wraps(function)
    def run(*arguments: Any, **named: Any) -> Any:
        global depth
        depth += 1
        begin = time.perf_counter()
        try:
            return function(*arguments, **named)
        finally:
            depth -= 1
            note(name, time.perf_counter() - begin, depth)

    return run


def put_clocks() -> None:
    """Around every phase. Modules are imported here: their imports are phases, too."""
    for name, module, path in PHASES:
        begin = time.perf_counter()
        new = module not in sys.modules
        try:
            holder: Any = importlib.import_module(module)
        except ImportError:
            continue
        if new:
            note(f"import of {module}", time.perf_counter() - begin, 0)
        *owners, last = path.split(".")
        for owner in owners:
            holder = getattr(holder, owner, None)
        function = getattr(holder, last, None)
        if function is not None:
            setattr(holder, last, timed(name, function))


def main() -> None:
    """Run the command until the server is ready, and tell."""
    import psutil

    begin = psutil.Process().create_time()
    note("Python", BEGUN - begin, 0)
    put_clocks()
    from router.cli import main as command

    def ready(*_: Any) -> None:
        note("whole start", time.time() - begin, 0)
        print(json.dumps(found), flush=True)
        os._exit(0)

    importlib.import_module("router.cli.compose").__dict__["print_summary"] = ready
    sys.argv[0] = "lora-router"
    command.main()


if __name__ == "__main__":
    main()
