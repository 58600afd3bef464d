"""Rows 1 to 5: the contract is linted, formatted, commented, unbroken, and the stubs are its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from router.v1 import adapters_pb2, experiments_pb2, inference_pb2
from tests.stub_freshness import ROOT, stale

BUF = Path(sys.executable).with_name("buf")


def buf(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([BUF, *arguments], cwd=cwd, capture_output=True, text=True, check=False)


def test_lint_with_comments_and_no_exceptions() -> None:
    done = buf("lint")
    assert done.returncode == 0, done.stdout
    config = (ROOT / "buf.yaml").read_text()
    assert "COMMENTS" in config
    assert "ignore" not in config
    assert "except" not in config


@pytest.mark.parametrize("module", [adapters_pb2, experiments_pb2, inference_pb2])
def test_go_and_java_need_no_mapping(module: Any) -> None:
    options = module.DESCRIPTOR.GetOptions()
    assert options.go_package == "lora-router/router/v1;routerv1"
    assert (options.java_package, options.java_multiple_files) == ("lorarouter.router.v1", True)


def test_format() -> None:
    done = buf("format", "--diff", "--exit-code")
    assert done.returncode == 0, done.stdout


def test_nothing_released_is_broken() -> None:
    done = buf("breaking", "--against", "proto/router.v1.binpb")
    assert done.returncode == 0, done.stdout


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "proto", tmp_path / "proto")
    shutil.copytree(ROOT / "router/v1", tmp_path / "router/v1", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "buf.yaml", tmp_path)
    return tmp_path


def test_stubs_are_fresh() -> None:
    assert stale() == []


def test_a_changed_proto_is_noticed(copy: Path) -> None:
    proto = copy / "proto/router/v1/inference.proto"
    proto.write_text(proto.read_text().replace("string text = 1;", "string text = 15;", 1))
    assert "inference_pb2.py" in stale(copy)
    assert buf("breaking", "--against", "proto/router.v1.binpb", cwd=copy).returncode != 0


def test_a_leftover_stub_is_noticed(copy: Path) -> None:
    (copy / "router/v1/old_pb2.py").write_text("")
    assert stale(copy) == ["old_pb2.py"]
