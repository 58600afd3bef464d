"""Keys and signatures, against what the minisign tool (0.12) wrote, and everything that is none."""

from __future__ import annotations

import base64
import stat
from pathlib import Path

import pytest

from router.registry.format.minisign import BadSignature, PublicKey, SecretKey, Signature, shown, write_secret

MESSAGE = b"lora-router adapter sha256:" + b"ab" * 32 + b"\n"
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


@pytest.fixture(scope="module")
def key() -> SecretKey:
    return SecretKey.make()


def test_what_the_tool_signed_is_good_and_its_files_are_read_and_written_alike() -> None:
    public, secret = PublicKey.parse(TOOL_PUBLIC), SecretKey.parse(TOOL_SECRET)
    public.check(MESSAGE, Signature.parse(TOOL_SIGNATURE.encode()))
    assert (secret.public, public.text(), shown(public.key_id)) == (public, TOOL_PUBLIC, TOOL_ID)
    ours, theirs = secret.sign(MESSAGE, "made by minisign 0.12").text(), TOOL_SIGNATURE
    assert ours.splitlines()[1:] == theirs.splitlines()[1:], "Ed25519 has no chance in it"


def test_a_key_comes_back_from_its_files(key: SecretKey, tmp_path: Path) -> None:
    write_secret(tmp_path / "key", key)
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert SecretKey.parse((tmp_path / "key").read_text()) == key
    lone = key.public.text().splitlines()[1]
    assert PublicKey.parse(key.public.text()) == PublicKey.parse(lone) == key.public
    assert SecretKey.make() != key
    with pytest.raises(FileExistsError):
        write_secret(tmp_path / "key", key)


def test_a_secret_is_not_shown(key: SecretKey) -> None:
    assert repr(key.seed) not in repr(key)
    assert repr(key).startswith("<")


@pytest.mark.parametrize("message", [b"", MESSAGE[:-1], MESSAGE + b"\n", MESSAGE.replace(b"ab", b"ac", 1)])
def test_another_message_does_not_fit(message: bytes) -> None:
    with pytest.raises(BadSignature, match="does not fit"):
        PublicKey.parse(TOOL_PUBLIC).check(message, Signature.parse(TOOL_SIGNATURE.encode()))


def test_another_key_does_not_fit(key: SecretKey) -> None:
    with pytest.raises(BadSignature, match="does not fit"):
        key.public.check(MESSAGE, Signature.parse(TOOL_SIGNATURE.encode()))


def test_the_comment_is_signed_too() -> None:
    told = Signature.parse(TOOL_SIGNATURE.replace("minisign 0.12", "somebody else").encode())
    with pytest.raises(BadSignature, match="does not fit"):
        PublicKey.parse(TOOL_PUBLIC).check(MESSAGE, told)


def test_every_byte_of_a_signature_counts(key: SecretKey) -> None:
    good = key.sign(MESSAGE, "c")
    for at in range(64):
        flipped = bytes(b ^ (1 if i == at else 0) for i, b in enumerate(good.signature))
        with pytest.raises(BadSignature):
            key.public.check(MESSAGE, Signature(good.key_id, flipped, "c", good.comment_signature))


def test_the_old_algorithm_is_refused_by_name() -> None:
    with pytest.raises(BadSignature, match="sign without -l"):
        Signature.parse(TOOL_LEGACY.encode())


@pytest.mark.parametrize("length", [0, 1, 40, 60, 150, len(TOOL_SIGNATURE) - 2, len(TOOL_SIGNATURE) - 30])
def test_a_cut_signature_is_told_as_one(length: int) -> None:
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
def test_other_texts_are_no_signature(data: bytes) -> None:
    with pytest.raises(BadSignature):
        Signature.parse(data)


@pytest.mark.parametrize("text", ["", "x", TOOL_SECRET, "untrusted comment: x\n!!!", "one\ntwo\nthree"])
def test_other_texts_are_no_public_key(text: str) -> None:
    with pytest.raises(BadSignature):
        PublicKey.parse(text)


def changed(secret: str, at: int, value: int) -> str:
    first, second, *_ = secret.splitlines()
    data = bytearray(base64.b64decode(second))
    data[at] = value
    return f"{first}\n{base64.b64encode(bytes(data)).decode()}\n"


def test_a_secret_key_with_a_password_is_for_the_tool(key: SecretKey) -> None:
    with pytest.raises(BadSignature, match="has a password"):
        SecretKey.parse(changed(key.text(), 2, ord("S")))


@pytest.mark.parametrize("at", [0, 4, 60, 100, 157])
def test_a_damaged_secret_key_is_refused(key: SecretKey, at: int) -> None:
    data = base64.b64decode(key.text().splitlines()[1])
    with pytest.raises(BadSignature):
        SecretKey.parse(changed(key.text(), at, data[at] ^ 0xFF))
