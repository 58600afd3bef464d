"""llama.cpp for benchmarks: its server and `llama-quantize`, built once for the processor of this machine.

Released binaries are not in a package registry. The package llama-cpp-python on PyPI has the sources, and
cmake and ninja are on PyPI, too. What is built stays in a folder of its own in the user's cache.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path

from benchmarks.contestants import Missing, ours, physical_cores
from router.folders import cache_folder

PACKAGE, VERSION = "llama-cpp-python", "0.3.36"
SERVER, QUANTIZE = "llama-server", "llama-quantize"
OPTIONS = (
    "CMAKE_BUILD_TYPE=Release",
    "GGML_NATIVE=ON",  # every instruction of this processor
    "BUILD_SHARED_LIBS=OFF",
    "LLAMA_OPENSSL=OFF",
    "LLAMA_BUILD_UI=OFF",
    "LLAMA_USE_PREBUILT_UI=OFF",
    "LLAMA_BUILD_APP=OFF",
    "LLAMA_BUILD_TESTS=OFF",
    "LLAMA_BUILD_EXAMPLES=OFF",
)
WHY = (
    "built with GGML_NATIVE; threads: all cores; prompts are sent as ids; no copies of finished prompts; "
    "else its defaults, among them continuous batching and flash attention"
)


def program(name: str) -> Path:
    """The path of `llama-server` or `llama-quantize`, built on first use. Raises Missing."""
    root = cache_folder() / "peers" / f"{PACKAGE}-{VERSION}"
    if not (root / "installed").exists():
        print(f"building llama.cpp of {PACKAGE} {VERSION} in {root} (some 20 minutes, once)", file=sys.stderr)
        root.mkdir(parents=True, exist_ok=True)
        try:
            with tempfile.TemporaryDirectory(dir=root) as folder:
                _build(Path(folder), root)
        except subprocess.CalledProcessError as error:
            raise Missing(f"llama.cpp cannot be built: {_reason(error.stdout + error.stderr)}") from error
        except OSError as error:
            raise Missing(f"llama.cpp cannot be built: {error}") from error
        (root / "installed").touch()
    return root / name


def server(model: Path, requests: int, tokens: int, adapters: Sequence[Path], *more: str) -> list[str]:
    """The command of a contestant: llama-server for so many requests at once, `tokens` for all together.

    Adapters act where a request names them. Raises Missing.
    """
    options = ["--model", str(model), "--threads", str(physical_cores()), "--parallel", str(requests)]
    options += ["--ctx-size", str(tokens), "--cache-ram", "0", "--lora-init-without-apply"]
    options += [part for adapter in adapters for part in ("--lora", str(adapter))]
    return ours("peer_llama", str(program(SERVER)), *options, *more)


def _build(work: Path, into: Path) -> None:
    """Download, unpack and compile in `work`; the programs are all that stays."""
    tools = work / "tools"
    venv.create(tools, with_pip=True)
    pip = [str(tools / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
    _run(*pip, "install", "cmake", "ninja")
    wanted = f"{PACKAGE}=={VERSION}"
    _run(*pip, "download", "--no-deps", "--no-binary", PACKAGE, "--dest", str(work), wanted)
    shutil.unpack_archive(next(work.glob("*.tar.gz")), work, filter="data")
    sources = next(work.glob("*/vendor/llama.cpp"))
    cmake, ninja, made = str(tools / "bin" / "cmake"), tools / "bin" / "ninja", work / "made"
    options = [f"-D{option}" for option in (*OPTIONS, f"CMAKE_MAKE_PROGRAM={ninja}")]
    _run(cmake, "-S", str(sources), "-B", str(made), "-G", "Ninja", *options)
    _run(cmake, "--build", str(made), "--target", SERVER, QUANTIZE)
    for name in (SERVER, QUANTIZE):
        shutil.copy2(made / "bin" / name, into / name)


def _reason(printed: str) -> str:
    """Two lines of what a build printed, from its first error on, as one."""
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    first = next((number for number, line in enumerate(lines) if "error" in line.lower()), len(lines) - 2)
    return " ".join(lines[max(0, first) :][:2]) or "it printed nothing"


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


if __name__ == "__main__":
    print(program(SERVER))
