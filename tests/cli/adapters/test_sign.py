import json
import stat

import pytest

from tests.cli.tiny import write_adapter


@pytest.fixture
def folder(own_folder):
    return write_adapter(own_folder / "medical", manifest='[adapter]\nname = "medical"\n')


@pytest.fixture
def key(cli, own_folder):
    assert cli("adapters", "keygen", "release.key").code == 0
    return own_folder / "release.key"


def validated(cli, folder):
    (report,) = json.loads(cli("adapters", "validate", "--no-base", "--json", folder).out)
    return [f["code"] for f in report["findings"] if f["severity"] == "refuse"]


def test_from_a_new_key_to_an_adapter_that_is_taken(cli, folder, key, monkeypatch):
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    monkeypatch.setenv("LORA_ROUTER_REQUIRE_SIGNED", f"{key}.pub")
    assert validated(cli, folder) == ["signature-missing"]
    done = cli("adapters", "sign", folder, "--key", key)
    assert done.code == 0
    assert "signed medical (sha256:" in done.out.replace(f"{folder.parent}/", "")
    assert validated(cli, folder) == []
    (folder / "adapter.toml").write_text('[adapter]\nname = "legal"\n')
    assert validated(cli, folder) == ["signature-invalid"]
    assert sorted(path.name for path in folder.iterdir() if path.name.startswith(".")) == []


def test_digests_are_a_list_that_allows_them(cli, folder, own_folder, monkeypatch):
    told = cli("adapters", "digest", folder)
    (own_folder / "adapters.lock").write_text(told.out)
    monkeypatch.setenv("LORA_ROUTER_ADAPTERS_LOCK", "adapters.lock")
    assert validated(cli, folder) == []
    (folder / "adapter.toml").write_text('[adapter]\nname = "legal"\n')
    assert validated(cli, folder) == ["digest-not-listed"]


def test_a_name_that_is_the_folders_is_not_covered(cli, own_folder, key):
    folder = write_adapter(own_folder / "plain")
    assert "which the signature does not cover" in cli("adapters", "sign", folder, "--key", key).out


def test_a_key_is_never_overwritten(cli, key):
    before = key.read_text()
    done = cli("adapters", "keygen", "release.key")
    assert done.code == 1
    assert "exists already" in done.err
    assert key.read_text() == before


def test_what_cannot_be_signed_is_told(cli, folder, key, own_folder):
    (own_folder / "empty").mkdir()
    done = cli("adapters", "sign", folder, "empty", "--key", key)
    assert done.code == 1
    assert "adapter_config.json" in done.err
    assert not (folder / "adapter.sig").exists(), "all or none"
    done = cli("adapters", "sign", folder, "--key", f"{key}.pub")
    assert done.code == 1
    assert "release.key.pub: holds 42 bytes" in done.err
    assert cli("adapters", "sign", folder, "--key", "absent").code == 1
