"""Signed and listed adapters at the command line."""

from __future__ import annotations

import json

import pytest

from router.registry.format.artifact import digest_of_folder
from router.registry.format.trust import message_of
from tests.cli.tiny import write_adapter
from tests.registry.signing import Signer


@pytest.fixture
def folder(own_folder):
    return write_adapter(own_folder / "medical", manifest='[adapter]\nname = "medical"\n')


def validated(cli, folder):
    (report,) = json.loads(cli("adapters", "validate", "--no-base", "--json", folder).out)
    return [f["code"] for f in report["findings"] if f["severity"] == "refuse"]


def test_a_signed_adapter_is_taken_until_it_changes(cli, folder, own_folder, monkeypatch):
    key = Signer.make()
    (own_folder / "release.pub").write_text(key.public_text())
    monkeypatch.setenv("LORA_ROUTER_REQUIRE_SIGNED", "release.pub")
    assert validated(cli, folder) == ["signature-missing"]
    key.sign(folder)
    assert validated(cli, folder) == []
    (folder / "adapter.toml").write_text('[adapter]\nname = "legal"\n')
    assert validated(cli, folder) == ["signature-invalid"]


def test_what_minisign_signs_is_made_of_the_digest(cli, folder):
    """As docs/adapter-format.md makes it."""
    told = cli("adapters", "digest", folder).out
    assert f"lora-router adapter sha256:{told[7:71]}\n".encode() == message_of(digest_of_folder(folder))


def test_digests_are_a_list_that_allows_them(cli, folder, own_folder, monkeypatch):
    told = cli("adapters", "digest", folder)
    (own_folder / "adapters.lock").write_text(told.out)
    monkeypatch.setenv("LORA_ROUTER_ADAPTERS_LOCK", "adapters.lock")
    assert validated(cli, folder) == []
    (folder / "adapter.toml").write_text('[adapter]\nname = "legal"\n')
    assert validated(cli, folder) == ["digest-not-listed"]


def test_a_folder_without_an_adapter_has_no_digest(cli, own_folder):
    (own_folder / "empty").mkdir()
    done = cli("adapters", "digest", "empty")
    assert done.code == 1
    assert "adapter_config.json" in done.err
