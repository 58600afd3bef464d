"""The compiled module: built once for these sources, flags, torch, Python and CPU, then cached.

A cached file is loaded only if it has the bytes that were written: loading a truncated library kills the
process, it does not raise.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import importlib.util
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType

import torch

from router.folders import cache_folder

log = logging.getLogger(__name__)

SOURCES = Path(__file__).parent / "src"
_AVX2 = ("avx2", "fma")
_AVX512 = (*_AVX2, "avx512f", "avx512bw", "avx512vl", "avx512dq")
# Best first: name, and the flags that the CPU must have, as Linux writes them.
LEVELS = {
    "amx-bf16": (*_AVX512, "avx512_bf16", "avx512vbmi", "amx_tile", "amx_bf16"),
    "avx512-bf16": (*_AVX512, "avx512_bf16"),
    "avx512": _AVX512,
    "avx2": _AVX2,
}
# Used by a level where the CPU has them.
EXTRAS = {"avx512-bf16": ("avx512vbmi",)}
# Threads are the team's own: OpenMP would share torch's pools, and their waiting.
FLAGS = ["-O3", "-fno-math-errno", "-fno-trapping-math"]
STEP = re.compile(r"\[(\d+)/(\d+)\] ")  # begins ninja's line about a file that is compiled


class NotBuilt(Exception):
    """There is no module. The message is short and names no path; `detail` is for the log."""

    def __init__(self, message: str, detail: object = "") -> None:
        super().__init__(message)
        self.detail = str(detail)


def load_module(level: str) -> ModuleType:
    """The module for an instruction set of `LEVELS`. Builds it at first (about 20 s); raises NotBuilt."""
    if level.startswith("amx") and not matrix_unit_granted():
        raise NotBuilt("the system does not grant the matrix unit")
    key = cache_key(level)
    name = f"lora_router_native_{key[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    try:
        folder = cache_folder() / "native" / key
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / "lock") as lock:
            library = folder / f"{name}.so"
            return _from_cache(library, level) or _build(library, level, lock)
    except OSError as error:
        raise NotBuilt("the cache folder cannot be used", error) from error


def cpu_levels() -> list[str]:
    """The instruction sets of `LEVELS` that this CPU has, best first."""
    flags = cpu_identity()[1]
    levels = [name for name, needed in LEVELS.items() if flags.issuperset(needed)]
    return levels if matrix_unit_granted() else [name for name in levels if not name.startswith("amx")]


@cache
def matrix_unit_granted() -> bool:
    """Ask the system for AMX, which a process may use from then on; asking again does no harm.

    It may say no: Linux before 5.16, a virtual machine, a thread whose signal stack is too small.
    """
    arch_prctl, request, tile_data = 158, 0x1023, 18  # asm/unistd_64.h, asm/prctl.h, XFEATURE_XTILEDATA
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    refused: int = ctypes.CDLL(None).syscall(arch_prctl, request, tile_data)
    return refused == 0


def cpu_identity() -> tuple[str, set[str]]:
    """Model name and flags of the first CPU; empty where the system does not tell."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor(), set()
    fields = dict(line.split(":", 1) for line in text.split("\n\n", 1)[0].splitlines() if ":" in line)
    named = {key.strip(): value.strip() for key, value in fields.items()}
    return named.get("model name", ""), set(named.get("flags", "").split())


def cache_key(level: str, portable: bool = False) -> str:
    """Everything the binary depends on, as a sha256; a portable one depends on no CPU but on its level."""
    model, cpu_flags = ("", set[str]()) if portable else cpu_identity()
    facts = [
        torch.__version__,
        str(torch.version.git_version),
        sysconfig.get_config_var("SOABI") or sys.version,
        model,
        " ".join(sorted(cpu_flags)),
        *compiler_flags(level, portable),
    ]
    digest = hashlib.sha256("\0".join(facts).encode())
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    return digest.hexdigest()


def compiler_flags(level: str, portable: bool = False) -> list[str]:
    """The C++ compiler's flags for an instruction set; those of a portable library name no more than it."""
    here = set[str]() if portable else cpu_identity()[1]
    extras = [flag for flag in EXTRAS.get(level, ()) if flag in here]
    return [*FLAGS, *(f"-m{_as_option(flag)}" for flag in (*LEVELS[level], *extras))]


def _as_option(flag: str) -> str:
    return flag.replace("_", "-" if flag.startswith("amx") else "")


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    """One process builds, the others wait; the lock ends with that process, and with the compiler that it
    started and gave the descriptor that this yields.
    """
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("another process builds the native operations; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def _from_cache(library: Path, level: str) -> ModuleType | None:
    """The module in the cache; None if there is none, or one that is broken."""
    proof = library.with_suffix(".sha256")
    if not library.exists() or not proof.exists():
        return None
    if proof.read_text() == sha256_of(library):
        try:
            return import_library(library)
        except ImportError as error:
            log.info("the cached native operations do not load and are built again: %s", error)
            return None
    log.info("the cached native operations (%s) are damaged and are built again", level)
    return None


def _build(library: Path, level: str, lock: int) -> ModuleType:
    """Compile in a folder that stays if this is interrupted: the next build goes on from its objects."""
    check_tools()
    started = time.monotonic()
    log.info("building the native operations for %s, once: about 20 s on two free cores", level)
    folder = library.parent / "objects"
    folder.mkdir(exist_ok=True)
    (folder / "lock").unlink(missing_ok=True)  # torch's own, left by a build that was interrupted
    compile_library(library.stem, str(folder), compiler_flags(level), lock)
    Path(folder, library.name).replace(library)
    shutil.rmtree(folder)
    library.with_suffix(".sha256").write_text(sha256_of(library))
    log.info("built the native operations in %.0f s", time.monotonic() - started)
    try:
        return import_library(library)
    except ImportError as error:
        raise NotBuilt("the new build does not load", error) from error


def import_library(library: Path) -> ModuleType:
    """The module in this file. Raises ImportError."""
    spec = importlib.util.spec_from_file_location(library.stem, library)
    if spec is None or spec.loader is None:
        raise ImportError(f"{library.name} is no extension module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[library.stem] = module
    return module


def sha256_of(path: Path) -> str:
    """Of a file's bytes, hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def check_tools() -> None:
    """Say at once what is missing, instead of starting a build that cannot end well."""
    compiler = os.environ.get("CXX") or "c++"
    if shutil.which(compiler.split()[0]) is None:
        raise NotBuilt("there is no C++ compiler", compiler)
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        raise NotBuilt("Python's headers are not installed", sysconfig.get_path("include"))
    if shutil.which("ninja", path=tool_path()) is None:
        raise NotBuilt("ninja is not installed")


def compile_library(name: str, folder: str, flags: list[str], *kept: int) -> None:
    """Leave FOLDER/NAME.so, compiled and imported once in a process of its own; raises NotBuilt.

    The process has the descriptors `kept`. The log says how many files are compiled.
    """
    # -P: this package's folder must not come first on the path, its files are named like others.
    command = [sys.executable, "-P", str(Path(__file__).with_name("compile.py")), name, folder, *flags]
    env = {**os.environ, "PATH": tool_path()}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env, pass_fds=kept
    ) as process:
        lines = []
        for line in process.stdout or ():
            lines.append(line)
            if step := STEP.match(line):
                log.info("native operations: %s of %s files compiled", *step.groups())
    if process.returncode:
        output = "".join(lines)
        log.debug("native build failed:\n%s", output)
        raise NotBuilt("the build failed", _error_line(output))


def tool_path() -> str:
    """Where tools are looked for: ninja is installed beside Python, which need not be on the path."""
    return os.pathsep.join([os.environ.get("PATH", os.defpath), sysconfig.get_path("scripts")])


def _error_line(output: str) -> str:
    """The line of a compiler's or ninja's output that says most."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if "error:" in line.lower() or "not found" in line]
    return (errors or lines or ["no output"])[0 if errors else -1][:300]
