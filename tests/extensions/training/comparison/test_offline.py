"""Two adapter folders compared without a server."""

from __future__ import annotations

import json

import pytest

from router.cli.main import run
from router.extensions.training import train


@pytest.mark.usefixtures("tiny_base")
def test_folders_answer_in_this_process(tmp_path, recipe, tiny_base, monkeypatch, capsys):
    monkeypatch.setenv("LORA_ROUTER_MODEL", str(tiny_base))
    monkeypatch.setenv("LORA_ROUTER_DEVICE", "cpu")
    monkeypatch.chdir(tmp_path)
    folders = [str(train(recipe, tmp_path / name, work=tmp_path, device="cpu")) for name in ("old", "new")]
    (tmp_path / "rows.jsonl").write_text((tmp_path / "train.jsonl").read_text())
    capsys.readouterr()
    options = ["--data", "rows.jsonl", "--metric", "exact_match", "--max-tokens", "8", "--json"]
    assert run(["compare", *folders, "--offline", *options]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["difference"]["rows"], found["difference"]["mean"]) == (24, 0.0)
    assert found["changes"] == [0.0] * 24  # by row


def test_offline_takes_no_judge_and_no_server(capsys):
    assert run(["compare", "a", "b", "--offline", "--data", "r.jsonl", "--judge", "base"]) == 2
    assert "there is no server to ask" in capsys.readouterr().err
