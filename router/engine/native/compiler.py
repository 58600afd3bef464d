"""Runs the C++ compiler."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

log = logging.getLogger(__name__)

# Not when linking: the OpenMP library is the one torch has loaded, so that both share one pool of threads.
FLAGS = ["-O3", "-fopenmp", "-fno-math-errno", "-fno-trapping-math"]
TIMEOUT = 600  # seconds for the compiler


class NotBuilt(Exception):
    """There is no module. The message is short and names no path; `detail` is for the log."""

    def __init__(self, message: str, detail: object = "") -> None:
        super().__init__(message)
        self.detail = str(detail)


def check_tools() -> None:
    """Say at once what is missing, instead of starting a build that cannot end well."""
    compiler = os.environ.get("CXX") or "c++"
    if shutil.which(compiler.split()[0]) is None:
        raise NotBuilt("there is no C++ compiler", compiler)
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        raise NotBuilt("Python's headers are not installed", sysconfig.get_path("include"))
    if shutil.which("ninja", path=tool_path()) is None:
        raise NotBuilt("ninja is not installed")


def tool_path() -> str:
    """Where tools are looked for: ninja is installed beside Python, which need not be on the path."""
    return os.pathsep.join([os.environ.get("PATH", os.defpath), sysconfig.get_path("scripts")])


def compile_library(name: str, folder: str, flags: list[str]) -> None:
    """Leave FOLDER/NAME.so, compiled and imported once in a process of its own; raises NotBuilt."""
    # -P: this package's folder must not come first on the path, its files are named like others.
    command = [sys.executable, "-P", str(Path(__file__).with_name("compile.py")), name, folder, *flags]
    env = {**os.environ, "PATH": tool_path()}
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, env=env)
    except subprocess.TimeoutExpired as error:
        raise NotBuilt(f"the compiler took more than {TIMEOUT} s") from error
    if result.returncode:
        log.debug("native build failed:\n%s\n%s", result.stdout, result.stderr)
        raise NotBuilt("the build failed", _cause(result.stdout + result.stderr))


def _cause(output: str) -> str:
    """The line of a compiler's or ninja's output that says most."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    telling = [line for line in lines if "error:" in line.lower() or "not found" in line]
    return (telling or lines or ["no output"])[0 if telling else -1][:300]
