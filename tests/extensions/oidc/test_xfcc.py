"""The header of a sidecar: Envoy's examples, what is malformed, and that nobody else can write its end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.extensions.oidc import forwarded_names

HASH = "468ed33be74eee6556d90c0149c1309e9ba61d6425303443c0748a02dd8de688"
SUBJECT = "/C=US/ST=CA/L=San Francisco/OU=Lyft/CN=Test Client"


@pytest.mark.parametrize(
    ("header", "names"),
    [
        (f'By=http://front;Hash={HASH};Subject="{SUBJECT}";URI=http://client', ["uri:http://client"]),
        (
            f"By=http://a;Hash={HASH};URI=http://one,By=http://b;Hash={HASH};URI=http://two",
            ["uri:http://two"],
        ),
        (
            "By=http://a;URI=http://one;DNS=b.example;DNS=c.example",
            ["uri:http://one", "dns:b.example", "dns:c.example"],
        ),
        ("URI=spiffe://cluster.local/ns/a/sa/b", ["uri:spiffe://cluster.local/ns/a/sa/b"]),
        ("uri=x;dNs=y;hash=z", ["uri:x", "dns:y"]),
        ('URI="a,b;c=d"', ["uri:a,b;c=d"]),
        (r'URI="say \"hi\" \\ there"', [r'uri:say "hi" \ there']),
        ("URI=https://x?a=b", ["uri:https://x?a=b"]),
        ("URI=", []),
        ('URI="";DNS=y', ["dns:y"]),
        ('Hash=x;Subject=""', []),
        ("URI=one,Hash=x", []),
        ("URI=one, URI=two", ["uri:two"]),
        ('Cert="-----BEGIN%20CERTIFICATE-----%0A";Chain="%0A";Issuer="x";URI=a', ["uri:a"]),
        (r'Subject="CN=a\\";URI=b', ["uri:b"]),
        (r'Subject="CN=a\";URI=b";URI=c', ["uri:c"]),
    ],
)
def test_names(header: str, names: list[str]) -> None:
    assert list(forwarded_names([header])) == names


@pytest.mark.parametrize(
    "header",
    [
        "",
        "URI",
        "=x",
        "URI=x;",
        "URI=x,",
        ",URI=x",
        ";URI=x",
        "URI=x,,URI=y",
        'URI="x',
        'URI=x"',
        'URI="x"y',
        'URI=x"y"',
        'URI="x\\"',
        "URI =x",
        "U R I=x",
        "URI=x\n",
        "URI=x\x00",
        "URI=ü",
        "ＵＲＩ=x",
    ],
)
def test_what_is_malformed(header: str) -> None:
    with pytest.raises(ValueError, match=r"pair|characters"):
        forwarded_names([header])


def test_two_headers_are_none() -> None:
    for headers in ([], ["URI=a", "URI=a"]):
        with pytest.raises(ValueError, match="headers"):
            forwarded_names(headers)


KEYS = st.sampled_from(["By", "Hash", "Cert", "Chain", "Subject", "URI", "DNS", "uri", "Other"])
TEXT = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=20)
ELEMENT = st.lists(st.tuples(KEYS, TEXT, st.booleans()), min_size=1, max_size=5)


def written(element: list[tuple[str, str, bool]]) -> str:
    """As a proxy writes it; quotes where it wants to, or has to."""

    def pair(key: str, value: str, quoted: bool) -> str:
        if quoted or set(value) & set('",;'):
            value = '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
        return f"{key}={value}"

    return ";".join(pair(*one) for one in element)


@given(st.lists(ELEMENT, min_size=1, max_size=4))
def test_what_is_written_is_read(elements: list[list[tuple[str, str, bool]]]) -> None:
    header = ",".join(map(written, elements))
    pairs = [(key.lower(), value) for key, value, _ in elements[-1] if value]
    names = [f"{kind}:{value}" for kind, value in pairs if kind in ("uri", "dns")]
    assert list(forwarded_names([header])) == names


ODD = st.text(st.sampled_from('",;=\\ URIDNSByx'), max_size=30)


@given(st.one_of(TEXT, ODD), st.sampled_from(["CN=me", r"CN=a\,b", r"CN=\"x\"", ""]))
def test_what_a_client_sends_ahead_never_becomes_the_last_element(sent: str, subject: str) -> None:
    """As Envoy appends: `sent`, a comma, and its own."""
    own = f'By=spiffe://proxy;Hash={HASH};Subject="{subject}";URI=spiffe://me'
    try:
        names = forwarded_names([f"{sent},{own}"])
    except ValueError:
        return
    assert names == ("uri:spiffe://me",)


@given(st.text(max_size=200))
def test_any_text_is_names_or_an_error(text: str) -> None:
    try:
        names = forwarded_names([text])
    except ValueError:
        return
    assert all(names)
