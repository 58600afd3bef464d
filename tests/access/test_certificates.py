"""Names in certificates: read from the certificate itself, with their kinds."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from router.access.certificates import KINDS, BadNames, names_in, rule_of

KEY = ec.generate_private_key(ec.SECP256R1())
SUBJECT = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "billing")])


def certificate(*names: x509.GeneralName) -> bytes:
    """A self-signed certificate with these names (SANs), PEM; without names, it has no such extension."""
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(SUBJECT)
        .issuer_name(SUBJECT)
        .public_key(KEY.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
    )
    if names:
        made = made.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return made.sign(KEY, hashes.SHA256()).public_bytes(Encoding.PEM)


def test_each_name_has_its_kind() -> None:
    names = (
        x509.DNSName("billing.example"),
        x509.UniformResourceIdentifier("spiffe://cluster/ns/a"),
        x509.RFC822Name("ops@a.example"),
        x509.IPAddress(ip_address("10.0.0.1")),
        x509.DirectoryName(SUBJECT),
    )
    assert names_in(certificate(*names)) == (
        "dns:billing.example",
        "uri:spiffe://cluster/ns/a",
        "email:ops@a.example",
        "ip:10.0.0.1",
    )


def test_the_common_name_is_no_name() -> None:
    assert names_in(certificate()) == ()


@pytest.mark.parametrize(
    "name",
    [
        x509.DNSName("billing\0.evil.example"),
        x509.DNSName("\0"),
        x509.UniformResourceIdentifier("spiffe://a\0b"),
        x509.RFC822Name("ops\0@a.example"),
        x509.DNSName("billing\n"),
        x509.DNSName._init_without_validation("bílling.example"),
        x509.UniformResourceIdentifier._init_without_validation("spiffe://ä"),
    ],
    ids=repr,
)
def test_a_nul_and_what_is_not_ascii_spoil_the_certificate(name: x509.GeneralName) -> None:
    with pytest.raises(BadNames):
        names_in(certificate(x509.DNSName("good.example"), name))


@given(st.binary(max_size=400))
def test_no_bytes_are_a_certificate_with_names_by_chance(data: bytes) -> None:
    with pytest.raises(BadNames):
        names_in(data)


WHOLE = certificate(x509.DNSName("billing.example"))


@given(st.integers(28, len(WHOLE) - 30), st.integers(0, 255))
def test_a_spoilt_certificate_has_no_other_names(at: int, byte: int) -> None:
    try:
        found = names_in(WHOLE[:at] + bytes([byte]) + WHOLE[at + 1 :])
    except BadNames:
        return
    assert all(name.isascii() and name.partition(":")[0] in KINDS for name in found)


@pytest.mark.parametrize(
    ("said", "rule"),
    [
        ("dns:billing.example", "dns:billing.example"),
        ("uri:spiffe://a/b", "uri:spiffe://a/b"),
        ("uri:urn:x:y", "uri:urn:x:y"),
        ("email:ops@a.example", "email:ops@a.example"),
        ("ip:10.0.0.1", "ip:10.0.0.1"),
        ("ip:0:0:0:0:0:0:0:1", "ip:::1"),
        ("billing.example", "dns:billing.example"),
        ("*.example", "dns:*.example"),
        ("spiffe://a/b", "uri:spiffe://a/b"),
        ("https://ops@a.example", "uri:https://ops@a.example"),
        ("urn:x:y", "uri:urn:x:y"),
        ("ops@a.example", "email:ops@a.example"),
        ("10.0.0.1", "ip:10.0.0.1"),
        ("::1", "ip:::1"),
    ],
)
def test_a_rule_says_its_kind_or_shows_it(said: str, rule: str) -> None:
    assert rule_of(said) == rule


@pytest.mark.parametrize("said", ["", "dns:", "uri:", "a\0b", "bílling", "dns:ä", "ip:x", "ip:10.0.0.0/8"])
def test_a_rule_that_no_certificate_can_fit_is_an_error(said: str) -> None:
    with pytest.raises(ValueError, match="cert must be"):
        rule_of(said)
