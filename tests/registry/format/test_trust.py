"""Who may bring adapters: signatures as minisign writes them, and lists of digests."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from router.errors import AdapterRejected, ConfigError
from router.registry.format import artifact
from router.registry.format.artifact import (
    FolderRules,
    Inspection,
    digest_of_folder,
    inspect_folder,
    read_artifact,
)
from router.registry.format.folder import OURS, SIGNATURE
from router.registry.format.trust import (
    BadSignature,
    Lock,
    PublicKey,
    Signature,
    Trust,
    message_of,
    parse_lock,
    shown,
)
from router.registry.format.untrusted import FolderFindings
from tests.registry.signing import Signer
from tests.registry.tiny import BASE, lora_tensors, safetensors, write_adapter

MESSAGE = b"lora-router adapter sha256:" + b"ab" * 32 + b"\n"
KEY, OTHER = Signer.make(), Signer.make()
TOOL_ID = "8EA72788B72C4BE8"
TOOL_PUBLIC = """untrusted comment: minisign public key 8EA72788B72C4BE8
RWToSyy3iCenjmP+/2nCR0GD6JUVLe9YbFYU8SRuGrX5ebJzYyzmRHsg
"""
TOOL_SECRET = """untrusted comment: minisign encrypted secret key
RWQAAEIyAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA6Esst4gnp46RHsYvX8SNExjkMvkzBwo7moCFMEpv+7yexfDT1D/O22P+/2nCR0GD6JUVLe9YbFYU8SRuGrX5ebJzYyzmRHsgAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=
"""
TOOL_SIGNATURE = """untrusted comment: signature from minisign secret key
RUToSyy3iCenjrcAOv+p2u029nrD4AdcWYG16jyuwsePtm4aYumVrGCujsdo5NraoXH3u8Sf1JyWqjaBiiBpJb2yimh3Rz2d4gU=
trusted comment: made by minisign 0.12
P/l06TurIQPb9CsVVYgW4vR8cU+oqwwakHLxlJ7FmcIFuN0XUPMjDt+OMlMN/cO4cCkIczrEIDkia1QtdkNQCQ==
"""
TOOL_LEGACY = """untrusted comment: signature from minisign secret key
RWToSyy3iCenjhS4SIWnbWfmbDLzDZ8NpWlm+EDhxyZckAXn+fqJ+QIHFTdOrwToot7WTI2hr7y1Oey+PcF6JYQmWsmFEbeFCQA=
trusted comment: timestamp:1795737284	file:msg
4wE6M+PseLURh8Dj2FDWmyO0OUnBEG9cJqDcTqgz6R/4xFpcQVZ8TE1EshdaLETkK2TXx3IaDnAtuuzOMaPfAg==
"""


def test_what_the_tool_signed_is_taken():
    public = PublicKey.parse(TOOL_PUBLIC)
    assert shown(public.key_id) == TOOL_ID
    assert PublicKey.parse(TOOL_PUBLIC.splitlines()[1]) == public, "its second line alone"
    trust = Trust([public])
    assert message_of("ab" * 32) == MESSAGE
    found = FolderFindings()
    trust.check("ab" * 32, TOOL_SIGNATURE.encode(), found)
    assert not found.refused
    trust.check("ac" * 32, TOOL_SIGNATURE.encode(), found)
    assert "changed after it was signed" in str(next(iter(found)))


@pytest.mark.parametrize("message", [b"", MESSAGE[:-1], MESSAGE + b"\n", MESSAGE.replace(b"ab", b"ac", 1)])
def test_another_message_does_not_fit(message):
    with pytest.raises(BadSignature, match="does not fit"):
        PublicKey.parse(TOOL_PUBLIC).check(message, Signature.parse(TOOL_SIGNATURE.encode()))


def test_another_key_does_not_fit():
    with pytest.raises(BadSignature, match="does not fit"):
        KEY.public.check(MESSAGE, Signature.parse(TOOL_SIGNATURE.encode()))


def test_the_comment_is_signed_too():
    told = Signature.parse(TOOL_SIGNATURE.replace("minisign 0.12", "somebody else").encode())
    with pytest.raises(BadSignature, match="does not fit"):
        PublicKey.parse(TOOL_PUBLIC).check(MESSAGE, told)


def test_every_byte_of_a_signature_counts():
    good = Signature.parse(KEY.signature(MESSAGE, "c").encode())
    for at in range(64):
        flipped = bytes(b ^ (1 if i == at else 0) for i, b in enumerate(good.signature))
        with pytest.raises(BadSignature):
            KEY.public.check(MESSAGE, Signature(good.key_id, flipped, "c", good.comment_signature))


def test_the_old_algorithm_is_refused_by_name():
    with pytest.raises(BadSignature, match="sign without -l"):
        Signature.parse(TOOL_LEGACY.encode())


@pytest.mark.parametrize("length", [0, 1, 40, 60, 150, len(TOOL_SIGNATURE) - 2, len(TOOL_SIGNATURE) - 30])
def test_a_cut_signature_is_told_as_one(length):
    with pytest.raises(BadSignature):
        Signature.parse(TOOL_SIGNATURE.encode()[:length])


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xfe\x00",
        b"a\nb\nc\nd",
        TOOL_SIGNATURE.replace("trusted comment", "comment").encode(),
        b"\n" * 9,
    ],
)
def test_other_texts_are_no_signature(data):
    with pytest.raises(BadSignature):
        Signature.parse(data)


@pytest.mark.parametrize("text", ["", "x", TOOL_SECRET, "untrusted comment: x\n!!!", "one\ntwo\nthree"])
def test_other_texts_are_no_public_key(text):
    with pytest.raises(BadSignature):
        PublicKey.parse(text)


# -- signed and listed adapters: what is refused, that nothing of it was parsed, and what is parsed if not


TRUST = Trust([KEY.public])
MANIFEST = '[adapter]\nname = "medical"\nversion = "1.0.0"\n'


@pytest.fixture
def folder(tmp_path):
    return write_adapter(
        tmp_path / "medical", adapter_toml=MANIFEST, probes_jsonl='{"prompt":"a","expect":"b"}'
    )


def signed(folder: Path, key: Signer = KEY) -> Path:
    return key.sign(folder)


def look(folder: Path, trust: Trust = TRUST) -> Inspection:
    return inspect_folder(folder, FolderRules(BASE, trust=trust))


def codes(seen: Inspection) -> list[str]:
    return [str(f.code) for f in seen.refusals]


@pytest.fixture
def unparsed(monkeypatch):
    """Fails the test where anything of an adapter is parsed."""

    def fail(*_: Any, **__: Any) -> None:
        pytest.fail("parsed")

    for name in ("parse_manifest", "parse_probes", "parse_lora_config", "layout_of", "header_length"):
        monkeypatch.setattr(artifact, name, fail)
    monkeypatch.setattr(artifact, "check_vocabulary", fail)


def test_a_good_signature_changes_nothing_else(folder):
    plain = inspect_folder(folder, FolderRules(BASE))
    seen = look(signed(folder))
    assert seen.ok
    assert (seen.manifest, seen.sites, seen.findings) == (plain.manifest, plain.sites, plain.findings)
    read, _ = read_artifact(folder, FolderRules(BASE, trust=TRUST))
    assert read.digest == digest_of_folder(folder)
    assert read.digest == read_artifact(folder, FolderRules(BASE))[0].digest


@pytest.mark.usefixtures("unparsed")
def test_without_a_signature_nothing_is_parsed(folder):
    seen = look(folder)
    assert codes(seen) == ["signature-missing"]
    assert shown(KEY.key_id) in seen.error
    assert (seen.name, seen.version) == ("medical", "0"), "the folder's name: the manifest says 1.0.0"
    with pytest.raises(AdapterRejected, match=r"adapter\.sig: is missing"):
        read_artifact(folder, FolderRules(BASE, trust=TRUST))


@pytest.mark.usefixtures("unparsed")
def test_by_another_key(folder):
    seen = look(signed(folder, OTHER))
    assert codes(seen) == ["signature-invalid"]
    assert f"by the key {shown(OTHER.key_id)}, and only those by {shown(KEY.key_id)} count" in seen.error


@pytest.mark.usefixtures("unparsed")
def test_by_another_key_that_says_it_is_the_right_one(folder):
    signed(folder, Signer(KEY.key_id, OTHER.seed))
    assert codes(look(folder)) == ["signature-invalid"]


@pytest.mark.usefixtures("unparsed")
@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("change", ["more", "less", "other"])
def test_changed_after_signing(folder, name, change):
    path = signed(folder) / name
    data = path.read_bytes()
    path.write_bytes({"more": data + b" ", "less": data[:-1], "other": data[:-1] + b"?"}[change])
    seen = look(folder)
    assert codes(seen) == ["signature-invalid"]
    assert "changed after it was signed" in seen.error
    assert digest_of_folder(folder) in seen.error


@pytest.mark.usefixtures("unparsed")
@pytest.mark.parametrize("name", ["adapter.toml", "probes.jsonl"])
def test_a_file_that_was_removed_after_signing(folder, name):
    (signed(folder) / name).unlink()
    assert codes(look(folder)) == ["signature-invalid"]


@pytest.mark.usefixtures("unparsed")
def test_a_file_that_was_added_after_signing(folder):
    (folder / "probes.jsonl").unlink()
    signed(folder)
    (folder / "probes.jsonl").write_text('{"prompt":"a","expect":"b"}')
    assert codes(look(folder)) == ["signature-invalid"]


@pytest.mark.usefixtures("unparsed")
def test_the_signature_of_another_adapter(folder, tmp_path):
    other = signed(write_adapter(tmp_path / "other", adapter_toml='[adapter]\nname = "other"\n'))
    shutil.copy(other / SIGNATURE, folder / SIGNATURE)
    assert codes(look(folder)) == ["signature-invalid"]


@pytest.mark.usefixtures("unparsed")
@pytest.mark.parametrize("length", [0, 10, 120, 200])
def test_a_truncated_signature(folder, length):
    path = signed(folder) / SIGNATURE
    path.write_bytes(path.read_bytes()[:length])
    seen = look(folder)
    assert codes(seen) == ["signature-invalid"]
    assert "it is cut" in seen.error


@pytest.mark.usefixtures("unparsed")
def test_a_signature_file_that_is_none(folder, tmp_path):
    path = signed(folder) / SIGNATURE
    path.write_bytes(b"x" * 5000)
    assert codes(look(folder)) == ["file-too-large"]
    path.unlink()
    (tmp_path / "elsewhere").write_text(KEY.signature(message_of(digest_of_folder(folder))))
    path.symlink_to(tmp_path / "elsewhere")
    assert codes(look(folder)) == ["file-not-regular"]


@pytest.mark.usefixtures("unparsed")
def test_sparse_weights_are_not_even_hashed(folder):
    signed(folder)
    os.truncate(folder / "adapter_model.safetensors", 1 << 33)
    assert codes(look(folder)) == ["weights-sparse"]


def test_any_of_several_keys(folder):
    both = Trust([KEY.public, OTHER.public])
    assert look(signed(folder, OTHER), both).ok
    assert look(signed(folder, KEY), both).ok
    signed(folder, Signer.make())
    assert codes(look(folder, both)) == ["signature-invalid"]


def test_bytes_that_change_between_the_check_and_the_parsing_are_not_used(folder, monkeypatch):
    """Weights written over in place, right after the signature was found good."""
    signed(folder)
    other = safetensors({name: tensor * 2 for name, tensor in lora_tensors().items()})
    check = Trust.check

    def then_overwrite(self: Trust, *asked: Any) -> Any:
        answer = check(self, *asked)
        with open(folder / "adapter_model.safetensors", "r+b") as file:
            file.write(b"\xff" * 8 + other[8:])
        return answer

    monkeypatch.setattr(Trust, "check", then_overwrite)
    assert look(folder).ok, "the header that is parsed is the one that was hashed"
    shutil.rmtree(folder)
    signed(write_adapter(folder, adapter_toml=MANIFEST))
    with pytest.raises(AdapterRejected, match="changed while it was read"):
        read_artifact(folder, FolderRules(BASE, trust=TRUST))


def test_listed_or_not(folder, tmp_path):
    path = tmp_path / "adapters.lock"
    path.write_text(f"# ours\n\nsha256:{digest_of_folder(folder)}  medical\n")
    trust = Trust(lock=Lock(path))
    assert look(folder, trust).ok
    (folder / "adapter.toml").write_text(MANIFEST.replace("1.0.0", "1.0.1"))
    seen = look(folder, trust)
    assert codes(seen) == ["digest-not-listed"]
    assert f"sha256:{digest_of_folder(folder)} is not in adapters.lock" in seen.error


@pytest.mark.usefixtures("unparsed")
def test_what_is_not_listed_is_not_parsed(folder, tmp_path):
    path = tmp_path / "adapters.lock"
    path.write_text("")
    assert codes(look(folder, Trust(lock=Lock(path)))) == ["digest-not-listed"]


def test_both_are_asked_for_where_both_are_set(folder, tmp_path):
    path = tmp_path / "adapters.lock"
    path.write_text(digest_of_folder(folder))
    both = Trust([KEY.public], Lock(path))
    assert codes(look(folder, both)) == ["signature-missing"]
    assert look(signed(folder), both).ok
    path.write_text("# none\n")
    assert codes(look(folder, both)) == ["digest-not-listed"]


def test_a_list_is_read_again_when_it_changes_and_a_bad_one_is_not_taken(tmp_path, caplog):
    path = tmp_path / "adapters.lock"
    path.write_text("a" * 64)
    lock = Lock(path)
    assert lock.digests() == {"a" * 64}
    path.write_text(f"sha256:{'b' * 64}\tnew\n{'c' * 64} # too\n")
    assert lock.digests() == {"b" * 64, "c" * 64}
    path.write_text("what?")
    assert lock.digests() == {"b" * 64, "c" * 64}
    assert "line 1 is no sha256" in lock.problem
    assert len([r for r in caplog.records if r.levelname == "ERROR"]) == 1
    path.unlink()
    assert lock.digests() == {"b" * 64, "c" * 64}


@pytest.mark.parametrize("line", ["a" * 63, "A" * 64, "a" * 65, f"md5:{'a' * 64}", f"{'a' * 64}x", "medical"])
def test_lines_that_are_no_digest(line):
    with pytest.raises(ValueError, match="line 2"):
        parse_lock(f"# first\n{line}\n")


def test_settings_name_keys_by_file_or_text(tmp_path, folder):
    path = tmp_path / "release.key.pub"
    path.write_text(KEY.public_text())
    lone = OTHER.public_text().splitlines()[1]
    trust = Trust.of([str(path), lone], "")
    assert trust is not None
    assert look(signed(folder, OTHER), trust).ok
    assert look(signed(folder, KEY), trust).ok
    assert Trust.of((), "") is None


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("absent.pub", "no such file, and no public key either"),
        ("", "no such file, and no public key either"),
        ("x" * 5000, "no such file, and no public key either"),
        ("RWQ", "no such file, and no public key either"),
    ],
)
def test_a_key_that_cannot_be_used_stops_the_start(said, told):
    with pytest.raises(ConfigError, match=told):
        Trust.of([said], "")


def test_a_secret_key_in_its_place_is_refused_and_not_shown(tmp_path):
    path = tmp_path / "key"
    path.write_text(TOOL_SECRET)
    with pytest.raises(ConfigError, match="bytes and not 42") as caught:
        Trust.of([str(path)], "")
    assert TOOL_SECRET.splitlines()[1] not in str(caught.value)


def test_a_list_that_cannot_be_read_stops_the_start(tmp_path):
    with pytest.raises(ConfigError, match="adapters_lock"):
        Trust.of((), str(tmp_path / "absent.lock"))
    (tmp_path / "bad.lock").write_text("nonsense\n")
    with pytest.raises(ConfigError, match="line 1"):
        Trust.of((), str(tmp_path / "bad.lock"))


def test_a_list_that_every_user_may_write_stops_the_start(tmp_path):
    (tmp_path / "open.lock").write_text("")
    (tmp_path / "open.lock").chmod(0o666)
    with pytest.raises(ConfigError, match="every user of this machine may write it"):
        Trust.of((), str(tmp_path / "open.lock"))
