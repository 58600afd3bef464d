"""The compiled module: built once for these sources, flags, torch, Python and CPU, then cached.

A cached file is loaded only if it has the bytes that were written: loading a truncated library kills the
process, it does not raise.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import logging
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import platformdirs
import torch

from router.engine.native.compiler import FLAGS, NotBuilt, check_tools, compile_library
from router.engine.native.cpu import LEVELS, identity

log = logging.getLogger(__name__)

SOURCES = Path(__file__).parent / "src"


def load_module(level: str) -> ModuleType:
    """The module for an instruction set of `cpu.LEVELS`. Builds it at first (about 20 s); raises NotBuilt."""
    key = cache_key(level)
    name = f"lora_router_native_{key[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    try:
        folder = platformdirs.user_cache_path("lora-router") / "native" / key
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / "lock"):
            return _cached(folder / f"{name}.so", level) or _built(folder / f"{name}.so", level)
    except OSError as error:
        raise NotBuilt("the cache folder cannot be used", error) from error


def cache_key(level: str) -> str:
    """Everything the binary depends on, as a sha256."""
    model, cpu_flags = identity()
    facts = [
        torch.__version__,
        str(torch.version.git_version),
        sysconfig.get_config_var("SOABI") or sys.version,
        model,
        " ".join(sorted(cpu_flags)),
        *FLAGS,
        *LEVELS[level][1],
    ]
    digest = hashlib.sha256("\0".join(facts).encode())
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    return digest.hexdigest()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process builds, the others wait; the lock ends with its process."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _cached(library: Path, level: str) -> ModuleType | None:
    """The module in the cache; None if there is none, or one that is broken."""
    proof = library.with_suffix(".sha256")
    if not library.exists() or not proof.exists():
        return None
    if proof.read_text() == _sha256(library):
        try:
            return _import(library)
        except ImportError as error:
            log.info("the cached native operations do not load and are built again: %s", error)
            return None
    log.info("the cached native operations (%s) are damaged and are built again", level)
    return None


def _built(library: Path, level: str) -> ModuleType:
    check_tools()
    started = time.monotonic()
    log.info("building the native operations for %s, once: about 20 s", level)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        compile_library(library.stem, folder, [*FLAGS, *LEVELS[level][1]])
        Path(folder, library.name).replace(library)
    library.with_suffix(".sha256").write_text(_sha256(library))
    log.info("built the native operations in %.0f s", time.monotonic() - started)
    try:
        return _import(library)
    except ImportError as error:
        raise NotBuilt("the new build does not load", error) from error


def _import(library: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(library.stem, library)
    if spec is None or spec.loader is None:
        raise ImportError(f"{library.name} is no extension module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[library.stem] = module
    return module


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
