"""Libraries built ahead: the best that fits is loaded, none is compiled, none that does not fit."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from router.engine import native
from router.engine.native import build, load_ops, prebuilt

pytestmark = [
    pytest.mark.skipif(not build.cpu_levels(), reason="the CPU has neither AVX2 nor AVX-512"),
    pytest.mark.timeout(600),
]


@pytest.fixture(autouse=True)
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "compile_library", lambda *_: pytest.fail("compiled"))
    monkeypatch.setattr(native, "load_module", lambda *_: pytest.fail("looked into the cache"))


def stand_in(folder: Path, level: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A library where that of `level` belongs; importing it gives a module of its name."""
    library = prebuilt.file_of(folder, level)
    library.write_bytes(level.encode())
    library.with_suffix(".sha256").write_text(build.sha256_of(library))
    monkeypatch.setattr(prebuilt, "import_library", lambda path: type(sys)(path.stem))
    return library


def test_the_best_that_the_cpu_has_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for level in build.LEVELS:
        stand_in(tmp_path, level, monkeypatch)
    for level in build.LEVELS:
        lower = list(build.LEVELS)[list(build.LEVELS).index(level) :]
        found, module = prebuilt.load_best(tmp_path, lower)
        assert (found, module.__name__) == (level, prebuilt.file_of(tmp_path, level).stem)


def test_a_lower_level_does_where_the_best_was_not_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(tmp_path, "avx2", monkeypatch)
    assert prebuilt.load_best(tmp_path, list(build.LEVELS))[0] == "avx2"


def test_names_differ_by_level_and_torch_and_not_by_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {prebuilt.file_of(tmp_path, level).name for level in build.LEVELS}
    assert len(names) == len(build.LEVELS)
    monkeypatch.setattr(build, "cpu_identity", lambda: ("another CPU", {"avx2", "fma", "avx512vbmi"}))
    assert {prebuilt.file_of(tmp_path, level).name for level in build.LEVELS} == names
    monkeypatch.setattr(torch, "__version__", "0.0.0")
    assert not {prebuilt.file_of(tmp_path, level).name for level in build.LEVELS} & names


def load(folder: Path) -> str:
    ops, text = load_ops(True, "cpu", torch.bfloat16, built_ahead=folder)
    assert ops.name == text.split(" ")[0].rstrip(":")
    return text


def test_none_that_fits_is_told_with_what_to_do(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert load(tmp_path) == "torch: none were built ahead for this torch, Python and CPU"
    assert "python -m router.engine.native.prebuilt FOLDER" in caplog.text


@pytest.mark.parametrize(
    ("fault", "told"),
    [("cut", "are damaged"), ("no proof", "cannot be loaded"), ("junk", "cannot be loaded")],
)
def test_a_damaged_one_is_never_loaded(
    fault: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    level = build.cpu_levels()[0]
    library = stand_in(tmp_path, level, monkeypatch)
    if fault == "cut":
        library.write_bytes(library.read_bytes()[:-1])
    elif fault == "no proof":
        library.with_suffix(".sha256").unlink()
    else:
        monkeypatch.setattr(prebuilt, "import_library", build.import_library)
    assert load(tmp_path) == f"torch: those built ahead for {level} {told}"


def test_a_level_that_does_not_compile_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str, folder: str, flags: list[str]) -> None:
        raise build.NotBuilt("the build failed", flags)

    monkeypatch.setattr(prebuilt, "compile_library", fail)
    with pytest.raises(build.NotBuilt):
        prebuilt.build(tmp_path, ["avx2"])
    assert list(tmp_path.iterdir()) == []


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
def test_what_is_built_by_the_command_is_served_with(tmp_path: Path) -> None:
    level = build.cpu_levels()[-1]
    command = [sys.executable, "-m", "router.engine.native.prebuilt"]
    made = subprocess.run([*command, str(tmp_path), level], capture_output=True, text=True, check=True)
    assert str(prebuilt.file_of(tmp_path, level)) in made.stderr
    assert "Warning" not in made.stderr
    assert load(tmp_path) == f"native ({level})"
    again = subprocess.run([*command, str(tmp_path), level], capture_output=True, text=True, check=True)
    assert "building" not in again.stderr
    wrong = subprocess.run([*command, str(tmp_path), "mmx"], capture_output=True, text=True, check=False)
    assert (wrong.returncode, "no level 'mmx'" in wrong.stderr) == (1, True)
