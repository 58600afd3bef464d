"""Builds that fail, caches that are broken: the server starts all the same and says why it is slower."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from router.engine import native
from router.engine.native import build, load_ops, prebuilt

pytestmark = [
    pytest.mark.skipif(not build.cpu_levels(), reason="the CPU has neither AVX2 nor AVX-512"),
    pytest.mark.timeout(600),
]


@pytest.fixture
def good() -> Path:
    """A library that loads."""
    module = build.load_module(build.cpu_levels()[0])
    return Path(str(module.__file__))


@pytest.fixture
def cache(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the library belongs in a cache that is empty, as in a process that has loaded none."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delitem(sys.modules, good.stem)
    return tmp_path / "lora-router" / "native" / good.parent.name / good.name


@pytest.fixture
def builds(good: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replaces the compiler by a copy of what it made before; holds one entry for each build."""
    done: list[str] = []

    def compile_(name: str, folder: str, flags: list[str], *_: int) -> None:
        time.sleep(0.05)
        done.append(name)
        shutil.copy(good, folder)

    monkeypatch.setattr(build, "compile_library", compile_)
    return done


def put(library: Path, content: bytes, proof: str | None = None) -> None:
    library.parent.mkdir(parents=True)
    library.write_bytes(content)
    library.with_suffix(".sha256").write_text(proof or build.sha256_of(library))


def load() -> str:
    ops, text = load_ops(True, "cpu", torch.bfloat16)
    assert ops.name == text.split(" ")[0].rstrip(":")
    return text


def test_a_second_start_takes_the_cached_library(cache, builds, monkeypatch):
    assert load() == load() == f"native ({build.cpu_levels()[0]})"
    monkeypatch.delitem(sys.modules, cache.stem)
    assert load().startswith("native")
    assert len(builds) == 1


@pytest.mark.parametrize("fault", ["truncated", "of another world", "without proof"])
def test_a_library_that_cannot_be_loaded_is_built_again(fault, cache, builds, good):
    """A truncated one would kill the process."""
    whole = good.read_bytes()
    content = {"truncated": whole[: len(whole) // 2], "of another world": b"junk"}.get(fault, whole)
    put(cache, content, build.sha256_of(good) if fault == "truncated" else None)
    if fault == "without proof":
        cache.with_suffix(".sha256").unlink()
    assert load().startswith("native")
    assert len(builds) == 1
    assert cache.read_bytes() == whole


def test_two_at_once_build_once(cache, builds):
    threads = [threading.Thread(target=load) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(builds) == 1


def test_a_build_that_does_not_load_falls_back_with_one_line(cache, monkeypatch, caplog):
    monkeypatch.setattr(
        build, "compile_library", lambda name, folder, *_: Path(folder, f"{name}.so").write_bytes(b"junk")
    )
    with caplog.at_level(logging.WARNING):
        assert load() == "torch: the new build does not load"
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "pip install -e '.[native]' in the checkout" in caplog.text


def test_a_compiler_that_fails_falls_back_with_its_telling_line(cache, monkeypatch, caplog, tmp_path):
    failing = tmp_path / "python"
    failing.write_text("#!/bin/sh\necho compiling; echo 'x.cpp:1: error: no such type'; echo more; exit 1\n")
    failing.chmod(0o755)
    monkeypatch.setattr(build.sys, "executable", str(failing))
    with caplog.at_level(logging.WARNING):
        assert load() == "torch: the build failed"
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "(x.cpp:1: error: no such type)" in caplog.text
    assert not list(cache.parent.glob("*.so"))


@pytest.mark.parametrize(
    ("tool", "reason"),
    [
        ("compiler", "there is no C++ compiler"),
        ("ninja", "ninja is not installed"),
        ("include", "Python's headers are not installed"),
    ],
)
def test_a_missing_tool_is_named(cache, monkeypatch, tmp_path, tool, reason):
    monkeypatch.setenv("CXX", "/nonexistent/g++" if tool == "compiler" else "/bin/true")
    if tool == "ninja":
        monkeypatch.setattr(build, "tool_path", lambda: str(tmp_path))
    elif tool == "include":
        monkeypatch.setattr(build.sysconfig, "get_path", lambda name: str(tmp_path))
    assert load() == f"torch: {reason}"


def test_a_build_that_was_interrupted_goes_on_from_its_objects(cache, good, monkeypatch, tmp_path, caplog):
    """The first process ends after one file and leaves torch's lock; the second finds what that made."""
    compiler = tmp_path / "python"
    compiler.write_text(
        f"""#!/bin/sh
cd "$4"
test ! -e lock || exit 9
if test -e one.o; then echo '[2/2] c++ two'; cp {good} .; exit 0; fi
echo '[1/2] c++ one'; touch one.o lock; kill -9 $$
"""
    )
    compiler.chmod(0o755)
    monkeypatch.setattr(build.sys, "executable", str(compiler))
    with caplog.at_level(logging.INFO):
        assert load() == "torch: the build failed"
        assert "native operations: 1 of 2 files compiled" in caplog.text
        assert load().startswith("native")
    assert "native operations: 2 of 2 files compiled" in caplog.text
    assert sorted(path.suffix for path in cache.parent.iterdir()) == ["", ".sha256", ".so"]  # "": the lock


def test_a_cache_folder_that_cannot_be_written(cache, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert load() == "torch: the cache folder cannot be used"


def test_the_key_knows_the_machine(monkeypatch):
    level = build.cpu_levels()[0]
    here = build.cache_key(level)
    assert here == build.cache_key(level)
    monkeypatch.setattr(build, "cpu_identity", lambda: ("another CPU", {"avx2", "fma"}))
    assert build.cache_key(level) != here


@pytest.mark.parametrize(
    ("enabled", "device", "dtype", "head_dim", "reason"),
    [
        (False, "cpu", torch.bfloat16, 64, "switched off"),
        (True, "mps", torch.bfloat16, 64, "this is mps"),
        (True, "cpu", torch.float16, 64, "float16"),
        (True, "cpu", torch.float32, 24, "heads of 24"),
    ],
)
def test_where_native_operations_do_not_apply(enabled, device, dtype, head_dim, reason):
    ops, text = load_ops(enabled, device, dtype, head_dim)
    assert ops.name == "torch"
    assert text.startswith("torch: ")
    assert reason in text


def test_a_cpu_without_vectors(monkeypatch):
    monkeypatch.setattr(build, "cpu_identity", lambda: ("old", {"sse2"}))
    assert build.cpu_levels() == []
    assert load() == "torch: the CPU has neither AVX2 nor AVX-512"
    monkeypatch.setattr(build, "cpu_identity", lambda: ("newer", {"avx2", "fma", "avx512f"}))
    assert build.cpu_levels() == ["avx2"]
    assert native.cpu_levels() == ["avx2"]


def test_without_the_systems_leave_the_matrix_unit_is_left_alone(monkeypatch):
    flags = {flag for needed in build.LEVELS.values() for flag in needed}
    monkeypatch.setattr(build, "cpu_identity", lambda: ("new", flags))
    monkeypatch.setattr(build, "matrix_unit_granted", lambda: True)
    assert build.cpu_levels() == ["amx-bf16", "avx512-bf16", "avx512", "avx2"]
    monkeypatch.setattr(build, "matrix_unit_granted", lambda: False)
    assert build.cpu_levels() == ["avx512-bf16", "avx512", "avx2"]
    with pytest.raises(build.NotBuilt, match="matrix unit"):
        build.load_module("amx-bf16")


# -- Libraries built ahead: the best that fits is loaded, none is compiled, none that does not fit.


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "compile_library", lambda *_: pytest.fail("compiled"))
    monkeypatch.setattr(native, "load_module", lambda *_: pytest.fail("looked into the cache"))


def library_of(folder: Path, level: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A library where that of `level` belongs; importing it gives a module of its name."""
    library = prebuilt.file_of(folder, level)
    library.write_bytes(level.encode())
    library.with_suffix(".sha256").write_text(build.sha256_of(library))
    monkeypatch.setattr(prebuilt, "import_library", lambda path: type(sys)(path.stem))
    return library


@pytest.mark.usefixtures("no_compiler")
def test_the_best_that_the_cpu_has_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for level in build.LEVELS:
        library_of(tmp_path, level, monkeypatch)
    for level in build.LEVELS:
        lower = list(build.LEVELS)[list(build.LEVELS).index(level) :]
        found, module = prebuilt.load_best(tmp_path, lower)
        assert (found, module.__name__) == (level, prebuilt.file_of(tmp_path, level).stem)


@pytest.mark.usefixtures("no_compiler")
def test_a_lower_level_does_where_the_best_was_not_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library_of(tmp_path, "avx2", monkeypatch)
    assert prebuilt.load_best(tmp_path, list(build.LEVELS))[0] == "avx2"


@pytest.mark.usefixtures("no_compiler")
def test_names_differ_by_level_and_torch_and_not_by_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {prebuilt.file_of(tmp_path, level).name for level in build.LEVELS}
    assert len(names) == len(build.LEVELS)
    monkeypatch.setattr(build, "cpu_identity", lambda: ("another CPU", {"avx2", "fma", "avx512vbmi"}))
    assert {prebuilt.file_of(tmp_path, level).name for level in build.LEVELS} == names
    monkeypatch.setattr(torch, "__version__", "0.0.0")
    assert not {prebuilt.file_of(tmp_path, level).name for level in build.LEVELS} & names


def load_ahead(folder: Path) -> str:
    ops, text = load_ops(True, "cpu", torch.bfloat16, built_ahead=folder)
    assert ops.name == text.split(" ")[0].rstrip(":")
    return text


@pytest.mark.usefixtures("no_compiler")
def test_none_that_fits_is_told_with_what_to_do(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert load_ahead(tmp_path) == "torch: none were built ahead for this torch, Python and CPU"
    assert "python -m router.engine.native.prebuilt FOLDER" in caplog.text


@pytest.mark.usefixtures("no_compiler")
@pytest.mark.parametrize(
    ("fault", "told"),
    [("cut", "are damaged"), ("no proof", "cannot be loaded"), ("junk", "cannot be loaded")],
)
def test_a_damaged_one_is_never_loaded(
    fault: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    level = build.cpu_levels()[0]
    library = library_of(tmp_path, level, monkeypatch)
    if fault == "cut":
        library.write_bytes(library.read_bytes()[:-1])
    elif fault == "no proof":
        library.with_suffix(".sha256").unlink()
    else:
        monkeypatch.setattr(prebuilt, "import_library", build.import_library)
    assert load_ahead(tmp_path) == f"torch: those built ahead for {level} {told}"


@pytest.mark.usefixtures("no_compiler")
def test_a_level_that_does_not_compile_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str, folder: str, flags: list[str]) -> None:
        raise build.NotBuilt("the build failed", flags)

    monkeypatch.setattr(prebuilt, "compile_library", fail)
    with pytest.raises(build.NotBuilt):
        prebuilt.build(tmp_path, ["avx2"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_compiler")
def test_a_level_that_this_cpu_lacks_is_kept_without_being_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(name: str, folder: str, flags: list[str]) -> None:
        Path(folder, f"{name}.so").write_bytes(b"compiled")
        raise build.NotBuilt("the build failed", "illegal instruction")

    monkeypatch.setattr(prebuilt, "compile_library", crash)
    monkeypatch.setattr(prebuilt, "cpu_levels", lambda: ["avx2"])
    (made,) = prebuilt.build(tmp_path, ["amx-bf16"])
    assert made.read_bytes() == b"compiled"
    with pytest.raises(build.NotBuilt):
        prebuilt.build(tmp_path, ["avx2"])


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.usefixtures("no_compiler")
def test_what_is_built_by_the_command_is_served_with(tmp_path: Path) -> None:
    level = build.cpu_levels()[-1]
    command = [sys.executable, "-m", "router.engine.native.prebuilt"]
    made = subprocess.run([*command, str(tmp_path), level], capture_output=True, text=True, check=True)
    assert str(prebuilt.file_of(tmp_path, level)) in made.stderr
    assert "Warning" not in made.stderr
    assert load_ahead(tmp_path) == f"native ({level})"
    again = subprocess.run([*command, str(tmp_path), level], capture_output=True, text=True, check=True)
    assert "building" not in again.stderr
    wrong = subprocess.run([*command, str(tmp_path), "mmx"], capture_output=True, text=True, check=False)
    assert (wrong.returncode, "no level 'mmx'" in wrong.stderr) == (1, True)
