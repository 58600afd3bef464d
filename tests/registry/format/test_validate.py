"""The report of `adapters validate`."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from router.registry.format.codes import Code
from router.registry.format.examine import validate_folder
from router.registry.format.findings import MOST, Findings, Severity
from router.registry.format.folder import OpenFile
from router.registry.format.text import show, some
from tests.registry.tiny import BASE, lora_tensors, safetensors, write_adapter


def test_a_good_folder(tmp_path: Path) -> None:
    report = validate_folder(write_adapter(tmp_path / "a", {"alpha_pattern": {"v_proj": 2}}), BASE)
    value = json.loads(json.dumps(report.to_json()))
    assert report.ok
    assert value["ok"] is True
    assert (value["name"], value["version"], value["rank"]) == ("a", "0", 4)
    assert value["values_checked"] is value["base_checked"] is True
    assert value["findings"] == []
    scales = {site["site"].rpartition(".")[2]: site["scaling"] for site in value["sites"]}
    assert scales == {"q_proj": 2.0, "v_proj": 0.5, "up_proj": 2.0}


def test_a_bad_folder_has_stable_codes(tmp_path: Path) -> None:
    report = validate_folder(write_adapter(tmp_path / "a", {"use_dora": True, "dtype": "x"}), None)
    value = report.to_json()
    assert not report.ok
    assert value["ok"] is value["values_checked"] is value["base_checked"] is False
    assert [(f["code"], f["severity"]) for f in value["findings"]] == [
        ("config-unsupported", "refuse"),
        ("config-ignored", "note"),
    ]


def test_values_are_checked_without_a_base(tmp_path: Path) -> None:
    tensors = lora_tensors()
    next(iter(tensors.values()))[0, 0] = np.inf
    report = validate_folder(write_adapter(tmp_path / "a", weights=safetensors(tensors)), None)
    assert [f.code for f in report.findings] == ["not-finite"]


def test_the_name_comes_from_the_folder_also_for_a_relative_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(write_adapter(tmp_path / "medical"))
    assert validate_folder(Path("."), BASE).inspection.name == "medical"


@pytest.mark.parametrize("change", [b"", b"more", b"changed in place"])
def test_a_file_that_changes_while_it_is_read_is_refused(
    change: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_adapter(tmp_path / "a") / "adapter_model.safetensors"
    read = OpenFile.read

    def slow(self: OpenFile) -> memoryview:
        if self.name == path.name:
            with path.open("r+b") as file:
                file.truncate(0 if not change else self.size)
                file.seek(0, os.SEEK_END if change == b"more" else os.SEEK_SET)
                file.write(change)
        return read(self)

    monkeypatch.setattr(OpenFile, "read", slow)
    assert [f.code for f in validate_folder(tmp_path / "a", BASE).findings] == ["file-changed"]


def test_unreadable_files_are_findings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_adapter(tmp_path / "a")

    def refuse(*_: object, **__: object) -> int:
        raise PermissionError(13, "Permission denied", "/secret/path")

    opened = os.open
    monkeypatch.setattr(
        os, "open", lambda p, *a, **k: refuse() if p == "adapter_config.json" else opened(p, *a, **k)
    )
    (finding,) = validate_folder(folder, BASE).findings
    assert (finding.code, finding.where) == ("file-unreadable", "adapter_config.json")
    assert finding.message == "cannot be read: Permission denied"


def test_findings_are_bounded_but_never_lose_the_refusal() -> None:
    found = Findings()
    for _ in range(MOST + 50):
        found.note(Code.CONFIG_IGNORED, "x")
    found.refuse(Code.CONFIG_VALUE, "y")
    assert len(found.items) == MOST + 1
    assert found.items[-1].severity is Severity.REFUSE


def test_the_error_text_fits_into_an_answer(tmp_path: Path) -> None:
    probes = "\n".join(["junk"] * 200)
    inspection = validate_folder(write_adapter(tmp_path / "a", probes_jsonl=probes), BASE).inspection
    assert len(inspection.refusals) == MOST
    assert len(inspection.error) < 3_100
    assert inspection.error.endswith(f"({MOST} in all)")


def test_codes_are_unique_and_lower_case() -> None:
    assert len({code.value for code in Code}) == len(Code)
    assert all(code.value.replace("-", "").islower() for code in Code)


UNTRUSTED: list[object] = [
    "\n\x1b[31m",
    "\ud800",
    10**5000,
    "x" * 9999,
    [1] * 99,
    {"a": 1},
    float("nan"),
    b"\xff",
]


@pytest.mark.parametrize("value", UNTRUSTED, ids=range(len(UNTRUSTED)))
def test_untrusted_values_are_shown_on_one_short_line(value: object) -> None:
    text = show(value)
    assert text.isprintable()
    assert len(text) <= 90
    text.encode()


def test_some_names() -> None:
    assert some(["a"]) == "'a'"
    assert some("abcde") == "'a', 'b', 'c' and 2 more"
