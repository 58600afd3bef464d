"""The contract is linted, formatted and commented, and the stubs are its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from router.kserve import open_inference_pb2
from router.v1 import adapters_pb2, engine_pb2, experiments_pb2, fleet_pb2, inference_pb2
from tests.stub_freshness import FOLDERS, ROOT, stale

KSERVE = "router/kserve/open_inference.proto"
BUF = Path(sys.executable).with_name("buf")


def buf(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([BUF, *arguments], cwd=cwd, capture_output=True, text=True, check=False)


def test_lint_with_comments_and_no_exceptions_but_for_a_protocol_of_others() -> None:
    done = buf("lint")
    assert done.returncode == 0, done.stdout
    lint = yaml.safe_load((ROOT / "buf.yaml").read_text())["lint"]
    assert lint["use"] == ["STANDARD", "COMMENTS"]
    assert set(lint) == {"use", "ignore_only"}
    assert {file for files in lint["ignore_only"].values() for file in files} == {f"proto/{KSERVE}"}
    assert not any(rule.startswith("COMMENT") for rule in lint["ignore_only"])


@pytest.mark.parametrize("module", [adapters_pb2, engine_pb2, experiments_pb2, fleet_pb2, inference_pb2])
def test_go_and_java_need_no_mapping(module: Any) -> None:
    options = module.DESCRIPTOR.GetOptions()
    assert options.go_package == "lora-router/router/v1;routerv1"
    assert (options.java_package, options.java_multiple_files) == ("lorarouter.router.v1", True)


def test_the_protocol_of_others_has_its_names_and_numbers() -> None:
    """As published: https://github.com/kserve/open-inference-protocol; the stream is Triton's addition."""
    kinds = open_inference_pb2.DESCRIPTOR.message_types_by_name
    assert open_inference_pb2.DESCRIPTOR.package == "inference"

    def numbers(kind: Any) -> dict[str, int]:
        return {field.name: field.number for field in kind.fields}

    assert numbers(kinds["ModelInferRequest"]) == {
        "model_name": 1,
        "model_version": 2,
        "id": 3,
        "parameters": 4,
        "inputs": 5,
        "outputs": 6,
        "raw_input_contents": 7,
    }
    tensor = {"name": 1, "datatype": 2, "shape": 3, "parameters": 4, "contents": 5}
    assert numbers(kinds["ModelInferRequest"].nested_types_by_name["InferInputTensor"]) == tensor
    assert numbers(kinds["ModelInferResponse"].nested_types_by_name["InferOutputTensor"]) == tensor
    assert numbers(kinds["InferParameter"]) == {
        "bool_param": 1,
        "int64_param": 2,
        "string_param": 3,
        "double_param": 4,
        "uint64_param": 5,
    }
    assert numbers(kinds["ModelStreamInferResponse"]) == {"error_message": 1, "infer_response": 2}


def test_format() -> None:
    done = buf("format", "--diff", "--exit-code")
    assert done.returncode == 0, done.stdout


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "proto", tmp_path / "proto")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "buf.yaml", tmp_path)
    return tmp_path


def test_stubs_are_fresh() -> None:
    assert stale() == []


def test_a_changed_proto_is_noticed(copy: Path) -> None:
    proto = copy / "proto/router/v1/inference.proto"
    proto.write_text(proto.read_text().replace("string text = 1;", "string text = 15;", 1))
    assert "router/v1/inference_pb2.py" in stale(copy)


def test_a_leftover_stub_is_noticed(copy: Path) -> None:
    for folder in FOLDERS:
        (copy / folder / "old_pb2.py").write_text("")
    assert stale(copy) == sorted(f"{folder}/old_pb2.py" for folder in FOLDERS)
