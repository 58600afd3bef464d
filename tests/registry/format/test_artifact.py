"""Folders looked at, read whole and validated."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.errors import AdapterRejected
from router.names import is_name
from router.registry.format import artifact as artifacts
from router.registry.format.artifact import FolderRules, inspect_folder, read_artifact, validate_folder
from router.registry.format.folder import OpenFile
from router.registry.format.untrusted import MOST
from router.types import PromptTemplate
from tests.registry.tiny import BASE, RANK, SITES, lora_tensors, safetensors, write_adapter

FILES = ("adapter.toml", "adapter_config.json", "adapter_model.safetensors", "probes.jsonl")
MANIFEST = """
[adapter]
name = "medical"
version = "1.2.0"
domain = "medical"
[prompt]
template = "Q: {prompt}\\nA:"
"""


def test_a_folder_without_manifest_is_served_under_its_own_name(tmp_path):
    folder = write_adapter(tmp_path / "plain")
    artifact, inspection = read_artifact(folder, FolderRules(BASE))
    assert (artifact.name, artifact.version) == ("plain", "0")
    assert {site.rank for site in artifact.sites.values()} == {RANK}
    assert artifact.sites.keys() == SITES.keys()
    assert inspection.findings == ()
    assert inspection.target_modules == ("q_proj", "up_proj", "v_proj")
    assert inspection.manifest.routing.examples == ()


def test_tensors_are_the_bytes_of_the_file_and_cannot_be_written(tmp_path):
    tensors = lora_tensors()
    artifact, _ = read_artifact(write_adapter(tmp_path / "a"), FolderRules(BASE))
    delta = artifact.sites["model.layers.1.mlp.up_proj"]
    b = np.frombuffer(delta.b.data, "<f4").reshape(delta.b.shape)
    assert np.array_equal(b, tensors["base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"])
    assert delta.scaling == 2.0
    buffers = {id(t.data.obj) for s in artifact.sites.values() for t in (s.a, s.b)}
    assert len(buffers) == 1
    with pytest.raises(TypeError):
        delta.a.data[0] = 1


def test_the_manifest_names_version_and_prompt(tmp_path):
    folder = write_adapter(
        tmp_path / "x", adapter_toml=MANIFEST, probes_jsonl='{"prompt": "a", "expect": "b"}\n'
    )
    artifact, inspection = read_artifact(folder, FolderRules(BASE))
    assert (artifact.name, artifact.version) == ("medical", "1.2.0")
    assert inspection.manifest.prompt == PromptTemplate("", "Q: {prompt}\nA:")
    assert [p.expect for p in inspection.probes] == ["b"]
    assert inspection.size_bytes == sum((folder / name).stat().st_size for name in FILES)


def test_the_digest_is_over_name_length_and_bytes(tmp_path):
    folder = write_adapter(tmp_path / "x", adapter_toml=MANIFEST)
    expected = hashlib.sha256()
    for name in FILES[:3]:
        data = (folder / name).read_bytes()
        expected.update(name.encode() + b"\0" + len(data).to_bytes(8, "little") + data)
    assert read_artifact(folder, FolderRules(BASE))[0].digest == expected.hexdigest()


@pytest.mark.parametrize("name", FILES)
def test_every_file_that_counts_changes_the_digest(tmp_path, name):
    folder = write_adapter(
        tmp_path / "x", adapter_toml=MANIFEST, probes_jsonl='{"prompt": "a", "expect": "b"}'
    )
    before = read_artifact(folder, FolderRules(BASE))
    path = folder / name
    old = path.read_bytes()
    path.write_bytes(old[:-1] + bytes([old[-1] ^ 1]) if name.endswith("tensors") else old + b"\n")
    after = read_artifact(folder, FolderRules(BASE))
    assert before[0].digest != after[0].digest


def test_other_files_do_not_change_the_digest(tmp_path):
    folder = write_adapter(tmp_path / "x", report_json="{}")
    before = read_artifact(folder, FolderRules(BASE))
    (folder / "report.json").write_text('{"more": 1}')
    after = read_artifact(folder, FolderRules(BASE))
    assert before[0].digest == after[0].digest


def test_weights_overwritten_after_reading_do_not_change_the_artifact(tmp_path):
    folder = write_adapter(tmp_path / "x")
    artifact, _ = read_artifact(folder, FolderRules(BASE))
    before = bytes(artifact.sites["model.layers.0.mlp.up_proj"].a.data)
    path = folder / "adapter_model.safetensors"
    with path.open("r+b") as file:
        file.seek(1000)
        file.write(b"\xff" * 500)
        file.truncate(1500)
    assert bytes(artifact.sites["model.layers.0.mlp.up_proj"].a.data) == before


def test_all_refusals_are_reported_at_once(tmp_path):
    config = {"r": 0, "use_dora": True, "task_type": "SEQ_CLS", "modules_to_save": ["lm_head"]}
    folder = write_adapter(tmp_path / "x", config, adapter_toml="[adaptr]\n", probes_jsonl="nonsense")
    with pytest.raises(AdapterRejected) as caught:
        read_artifact(folder, FolderRules(BASE))
    for word in (" r: ", "use_dora", "SEQ_CLS", "modules_to_save", "adaptr", "probes.jsonl line 1"):
        assert word in str(caught.value)
    assert "config-unsupported" in caught.value.metadata["codes"]


def test_inspection_reads_no_weights(tmp_path, monkeypatch):
    tensors = lora_tensors()
    next(iter(tensors.values()))[0, 0] = np.nan
    folder = write_adapter(tmp_path / "x", weights=safetensors(tensors))
    read: list[int] = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda *a: read.append(a[1]) or pread(*a))
    assert inspect_folder(folder, FolderRules(BASE)).ok
    assert max(read) < 4_000
    with pytest.raises(AdapterRejected, match="NaN"):
        read_artifact(folder, FolderRules(BASE))


def test_a_folder_that_is_not_there_is_a_finding_not_an_exception(tmp_path):
    inspection = inspect_folder(tmp_path / "gone", FolderRules(BASE))
    assert [f.code for f in inspection.refusals] == ["folder-unreadable"]
    assert inspection.name == "gone"
    with pytest.raises(AdapterRejected, match="No such file"):
        read_artifact(tmp_path / "gone", FolderRules(BASE))


@pytest.mark.parametrize("path", ["a" * 5_000, "a\0b", "x/" * 3_000 + "y", "Gone Folder"])
def test_impossible_paths_are_findings(path, tmp_path):
    inspection = inspect_folder(tmp_path / path, FolderRules(BASE))
    assert [f.code for f in inspection.refusals] == ["folder-unreadable"]
    assert is_name(inspection.name)


@pytest.mark.parametrize(
    ("names", "code", "words"),
    [
        ([], "no-adapter", "not an adapter folder"),
        (["lora.safetensors"], "no-adapter", "kohya"),
        (["pytorch_lora_weights.safetensors"], "no-adapter", "diffusers"),
        (["adapter.gguf"], "gguf-weights", "keep the PEFT folder"),
        (["adapter_model.safetensors"], "no-adapter", "adapter_config.json is missing"),
        (["model-00001-of-00002.safetensors"], "merged-model", "export the adapter"),
        (["pytorch_model.bin"], "merged-model", "export the adapter"),
        (["adapter_model.bin"], "pickle-weights", "adapters convert"),
        (["adapter_config.json"], "no-weights", "adapter_model.safetensors is missing"),
        (["adapter_config.json", "adapter_model.pt"], "pickle-weights", "adapter_model.pt"),
        (["adapter_config.json", "adapter_model.gguf"], "gguf-weights", "keep the PEFT folder"),
        (["adapter_config.json", "model.safetensors"], "merged-model", "export the adapter"),
    ],
)
def test_what_is_there_instead_of_an_adapter_is_named(names, code, words, tmp_path):
    for name in names:
        (tmp_path / name).write_bytes(b"{}")
    refusals = inspect_folder(tmp_path, FolderRules(BASE)).refusals
    assert code in " ".join(f.code for f in refusals)
    assert words in " ".join(str(f) for f in refusals)


@given(st.integers(0, 5_000), st.binary(min_size=1, max_size=9), st.sampled_from(FILES[:3]))
def test_any_damage_gives_findings_and_nothing_else(at, junk, name):
    with tempfile.TemporaryDirectory() as root:
        folder = write_adapter(Path(root) / "x", adapter_toml=MANIFEST)
        path = folder / name
        data = path.read_bytes()
        path.write_bytes(data[: at % len(data)] + junk + data[at % len(data) :])
        report = validate_folder(folder, FolderRules(BASE))
    assert name != FILES[2] or not report.ok
    assert all(f.message.isprintable() for f in report.findings)


def test_without_a_base_structure_is_checked_all_the_same(tmp_path):
    good = inspect_folder(write_adapter(tmp_path / "a"), FolderRules(None))
    assert good.ok
    assert {s.site for s in good.sites} == SITES.keys()
    bad = inspect_folder(write_adapter(tmp_path / "b", {"r": 5}), FolderRules(None))
    assert [f.code for f in bad.refusals] == ["rank-mismatch"]


def test_rank_above_the_servers_limit_is_refused(tmp_path):
    inspection = inspect_folder(write_adapter(tmp_path / "a"), FolderRules(BASE, max_rank=2))
    assert [f.code for f in inspection.refusals] == ["rank-too-large"]


def test_adapter_for_another_base_is_refused_by_digest_and_noted_by_name(tmp_path):
    pinned = write_adapter(tmp_path / "a", adapter_toml=f'[base]\ndigest = "{"cd" * 32}"\n')
    (refusal,) = inspect_folder(pinned, FolderRules(BASE)).refusals
    assert refusal.code == "other-base"
    assert "cdcd" in refusal.message
    assert "abab" in refusal.message
    same = write_adapter(
        tmp_path / "b",
        {"base_model_name_or_path": "x/other"},
        adapter_toml=f'[base]\ndigest = "{BASE.digest}"\n',
    )
    assert inspect_folder(same, FolderRules(BASE)).findings == ()
    other = inspect_folder(
        write_adapter(tmp_path / "c", {"base_model_name_or_path": "x/other"}), FolderRules(BASE)
    )
    assert other.ok
    assert "'x/other'" in other.notes[0]
    assert "'org/tiny-llama'" in other.notes[0]


def test_a_good_folder(tmp_path):
    report = validate_folder(
        write_adapter(tmp_path / "a", {"alpha_pattern": {"v_proj": 2}}), FolderRules(BASE)
    )
    value = json.loads(json.dumps(report.to_json()))
    assert report.ok
    assert value["ok"] is True
    assert (value["name"], value["version"], value["rank"]) == ("a", "0", 4)
    assert value["values_checked"] is value["base_checked"] is True
    assert value["findings"] == value["invocation_tokens"] == []
    hashers = {site["site"].rpartition(".")[2]: site["scaling"] for site in value["sites"]}
    assert hashers == {"q_proj": 2.0, "v_proj": 0.5, "up_proj": 2.0}


def test_a_bad_folder_has_stable_codes(tmp_path):
    report = validate_folder(
        write_adapter(tmp_path / "a", {"use_dora": True, "dtype": "x"}), FolderRules(None)
    )
    value = report.to_json()
    assert not report.ok
    assert value["ok"] is value["values_checked"] is value["base_checked"] is False
    assert [(f["code"], f["severity"]) for f in value["findings"]] == [
        ("config-unsupported", "refuse"),
        ("config-ignored", "note"),
    ]


def test_values_are_checked_without_a_base(tmp_path):
    tensors = lora_tensors()
    next(iter(tensors.values()))[0, 0] = np.inf
    report = validate_folder(write_adapter(tmp_path / "a", weights=safetensors(tensors)), FolderRules(None))
    assert [f.code for f in report.findings] == ["not-finite"]


def test_the_name_comes_from_the_folder_also_for_a_relative_path(tmp_path, monkeypatch):
    monkeypatch.chdir(write_adapter(tmp_path / "medical"))
    assert validate_folder(Path("."), FolderRules(BASE)).name == "medical"


@pytest.mark.parametrize("change", [b"", b"more", b"changed in place"])
def test_a_file_that_changes_while_it_is_read_is_refused(change, tmp_path, monkeypatch):
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
    assert [f.code for f in validate_folder(tmp_path / "a", FolderRules(BASE)).findings] == ["file-changed"]


def test_unreadable_files_are_findings(tmp_path, monkeypatch):
    folder = write_adapter(tmp_path / "a")

    def refuse(*_: object, **__: object) -> int:
        raise PermissionError(13, "Permission denied", "/secret/path")

    opened = os.open
    monkeypatch.setattr(
        os, "open", lambda p, *a, **k: refuse() if p == "adapter_config.json" else opened(p, *a, **k)
    )
    (finding,) = validate_folder(folder, FolderRules(BASE)).findings
    assert (finding.code, finding.where) == ("file-unreadable", "adapter_config.json")
    assert finding.message == "cannot be read: Permission denied"


def test_the_error_text_fits_into_an_answer(tmp_path):
    probes = "\n".join(["junk"] * 200)
    inspection = validate_folder(write_adapter(tmp_path / "a", probes_jsonl=probes), FolderRules(BASE))
    assert len(inspection.refusals) == MOST
    assert len(inspection.error) < 3_100
    assert inspection.error.endswith(f"({MOST} in all)")


def test_what_many_share_is_checked_once_and_against_each_base_and_setting(tmp_path, monkeypatch):
    parsed = list[int]()
    real = artifacts.parse_header

    def counting(raw: bytes, *more: Any) -> Any:
        parsed.append(len(raw))
        return real(raw, *more)

    monkeypatch.setattr(artifacts, "parse_header", counting)
    rules, narrow = FolderRules(BASE), FolderRules(BASE, max_rank=2)
    folders = [write_adapter(tmp_path / name) for name in ("a", "b", "c")]
    seen = [inspect_folder(folder, rules) for folder in folders]
    assert len(parsed) == 1
    assert {(s.ok, s.rank, s.sites) for s in seen} == {(True, 4, seen[0].sites)}
    assert [s.name for s in seen] == ["a", "b", "c"]
    assert not inspect_folder(folders[0], narrow).ok
    other = replace(BASE, sites={site: (out + 1, into) for site, (out, into) in BASE.sites.items()})
    assert "shape-mismatch" in {str(f.code) for f in inspect_folder(folders[0], FolderRules(other)).refusals}
    write_adapter(folders[1], {"r": 8})
    assert "rank-mismatch" in {str(f.code) for f in inspect_folder(folders[1], rules).refusals}
    write_adapter(folders[2], {"strange": 1})
    assert not inspect_folder(folders[2], rules).ok
    assert len(parsed) == 5
