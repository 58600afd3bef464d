import json
import tomllib
from pathlib import Path

import pytest

from router.registry.format.artifact import digest_of_folder
from tests.cli.tiny import write_adapter, write_base
from tests.registry.signing import Signer
from tests.sources.conftest import _server, adapter_files, hub
from tests.sources.fake_hub import COMMIT, REPO, TOKEN

__all__ = ["_server", "adapter_files", "hub"]
SOURCE = f"hub:{REPO}@v1.0"
FOLDER = Path("adapters/some-lora/v1.0")


@pytest.fixture
def base(own_folder, monkeypatch):
    """The base of the settings."""
    folder = write_base(own_folder / "tiny-base")
    monkeypatch.setenv("LORA_ROUTER_MODEL", str(folder))
    return folder


def test_from_the_hub_to_an_adapter_that_is_valid(cli, hub, base):
    hub.files |= {"README.md": b"---\nlicense: mit\n---\n", "train.py": b""}
    done = cli("adapters", "add", SOURCE)
    assert done.code == 0, done.err
    digest = digest_of_folder(FOLDER)
    assert f"some-lora@v1.0 added in {FOLDER}, rank 2" in done.out
    assert (
        f"from {SOURCE}, commit {COMMIT}\n  digest sha256:{digest}\n  licence, as its README says: mit"
        in done.out
    )
    assert "not taken: 'train.py' (code)" in done.out
    assert "ask --adapter some-lora" in done.out
    assert cli("adapters", "validate", FOLDER).code == 0
    record = tomllib.loads((FOLDER / "source.toml").read_text())
    assert (record["source"], record["pin"], record["digest"]) == (SOURCE, COMMIT, f"sha256:{digest}")
    again = cli("adapters", "add", SOURCE, "--digest", record["digest"])
    assert "is there already, the same bytes" in again.out


def test_as_json(cli, hub, base):
    done = json.loads(cli("adapters", "add", SOURCE, "--json").out)
    assert (done["outcome"], done["name"], done["version"], done["pin"]) == (
        "added",
        "some-lora",
        "v1.0",
        COMMIT,
    )
    assert done["base_checked"] is True
    assert cli("adapters", "digest", done["folder"]).out.startswith(done["digest"])
    assert json.loads(cli("adapters", "add", SOURCE, "--json").out)["outcome"] == "present"


def test_it_is_checked_against_the_base(cli, hub, base, own_folder, monkeypatch):
    foreign = write_adapter(own_folder / "foreign", modules={"model.layers.9.self_attn.q_proj": (8, 8)})
    hub.files = {path.name: path.read_bytes() for path in foreign.iterdir()}
    done = cli("adapters", "add", SOURCE)
    assert (done.code, done.err.count("is refused")) == (1, 1)
    assert not Path("adapters").exists()
    done = cli("adapters", "add", SOURCE, "--no-base")
    assert "were not compared with a base" in done.out
    monkeypatch.setattr("router.cli.base_files.base_digest_of", lambda *_: "ab" * 32)
    pinned = b'[base]\ndigest = "%s"\n' % (b"cd" * 32)
    hub.files["adapter.toml"] = pinned
    done = cli("adapters", "add", SOURCE, "--name", "x")
    assert done.code == 1
    assert "is refused" in done.err


def test_only_signed_ones_where_that_is_asked_for(cli, hub, base, own_folder, monkeypatch):
    key = Signer.make()
    signed = key.sign(write_adapter(own_folder / "signed"))
    monkeypatch.setenv("LORA_ROUTER_REQUIRE_SIGNED", key.public_text().splitlines()[1])
    done = cli("adapters", "add", SOURCE)
    assert done.code == 1
    assert "adapter.sig: is missing, and only adapters signed by" in done.err
    assert not Path("adapters").exists()
    hub.files["adapter.sig"] = (signed / "adapter.sig").read_bytes()
    assert cli("adapters", "add", SOURCE).code == 0
    assert (FOLDER / "adapter.sig").is_file()


def test_nothing_of_an_unsigned_one_is_parsed(cli, hub, base, monkeypatch):
    monkeypatch.setenv("LORA_ROUTER_REQUIRE_SIGNED", Signer.make().public_text().splitlines()[1])
    hub.files["adapter.toml"] = b'[adapter]\nname = "Not A Name"\n'
    monkeypatch.setattr("router.sources.adding.parse_manifest", lambda *_: 1 / 0)
    monkeypatch.setattr("router.registry.format.artifact.parse_manifest", lambda *_: 1 / 0)
    assert "adapter.sig: is missing" in cli("adapters", "add", SOURCE, "--no-base").err


def test_a_digest_that_is_not_listed_is_told(cli, hub, base, own_folder, monkeypatch):
    (own_folder / "adapters.lock").write_text("")
    monkeypatch.setenv("LORA_ROUTER_ADAPTERS_LOCK", "adapters.lock")
    done = cli("adapters", "add", SOURCE)
    assert done.code == 1
    digest = digest_of_folder(write_adapter(own_folder / "same"))
    assert f"its digest sha256:{digest} is not in adapters.lock" in done.err


def test_the_token_is_never_printed(cli, hub, monkeypatch):
    hub.needs, hub.gated = "hf_other", True
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    done = cli("adapters", "add", SOURCE, "--no-base")
    assert done.code == 1
    assert TOKEN not in done.out + done.err
    assert "is gated: accept its conditions" in done.err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([SOURCE, "--digest", "sha256:12"], 2, "--digest is sha256: and 64 digits of hex"),
        ([SOURCE, "--name", "No Name"], 2, "--name 'No Name': a name is"),
        ([SOURCE, "--version", "1 2"], 2, "--version '1 2': a version is"),
        (["org/some-lora"], 2, "org/some-lora is no folder here; hub:org/some-lora is one on the hub"),
        (["hub:some-lora"], 2, "hub:some-lora is not hub:ORG/NAME"),
        (["hub:org/none"], 1, "repository 'hub:org/none' not found"),
        ([SOURCE, "--subfolder", "../x"], 2, "--subfolder '../x' leads out of the folder"),
    ],
)
def test_what_is_wrong_is_one_line(cli, hub, arguments, code, message):
    done = cli("adapters", "add", *arguments)
    assert done.code == code, done.err
    assert message in done.err
    assert done.err.count("\n") == 1


def test_it_goes_where_a_server_looks(cli, hub, monkeypatch):
    monkeypatch.setenv("LORA_ROUTER_ADAPTERS_DIR", "mine:theirs")
    assert cli("adapters", "add", SOURCE, "--no-base").code == 0
    assert Path("mine/some-lora/v1.0/source.toml").is_file()
    assert cli("adapters", "add", SOURCE, "--no-base", "--adapters-dir", "theirs").code == 0
    assert Path("theirs/some-lora/v1.0/source.toml").is_file()
