"""The names in a client's certificate (SANs), each with its kind, such as `dns:NAME`.

They are read from the certificate itself and compared exactly, kind and name. A TLS library that joins kinds,
or cuts a name at a NUL, would let one name pass for another.
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from importlib.util import find_spec

from router.errors import ConfigError, install_extra

KINDS = ("dns", "uri", "email", "ip")
MOST_KNOWN = 4096  # certificates whose names are remembered


class BadNames(ValueError):
    """A certificate's names cannot be used; the text is for the log."""


def check_library() -> None:
    """Raises ConfigError where the names in certificates cannot be read."""
    if find_spec("cryptography") is None:
        text = f"names in certificates of clients need the package cryptography: {install_extra('signed')}"
        raise ConfigError(text)


def names_in(pem: bytes) -> tuple[str, ...]:
    """The names of a certificate that TLS has verified. Raises BadNames.

    A name with a NUL or anything else but printable ASCII spoils the whole certificate: libraries differ in
    how they read such names.
    """
    names, problem = _read(pem)
    if problem:
        raise BadNames(problem)
    return names


@lru_cache(MOST_KNOWN)
def _read(pem: bytes) -> tuple[tuple[str, ...], str]:
    """Names, or what is wrong with them. Every call of a connection brings the same certificate."""
    from cryptography import x509

    kinds: dict[type, str] = {
        x509.DNSName: "dns",
        x509.UniformResourceIdentifier: "uri",
        x509.RFC822Name: "email",
        x509.IPAddress: "ip",
    }
    try:
        extensions = x509.load_pem_x509_certificate(pem).extensions
        alternatives = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names = tuple(f"{kinds[type(one)]}:{one.value}" for one in alternatives if type(one) in kinds)
    except x509.ExtensionNotFound:
        return (), ""
    except Exception as error:  # whatever the library does not understand, nobody may be known by
        return (), f"the names in the certificate cannot be read: {type(error).__name__}"
    odd = next((name for name in names if not is_plain(name)), None)
    return (
        (names, "")
        if odd is None
        else ((), f"the certificate has a name of other than printable ASCII: {odd!r}")
    )


def rule_of(rule: str) -> str:
    """The name, with its kind, that `cert` in the clients file means. Raises ValueError.

    >>> rule_of("dns:a.example"), rule_of("a.example"), rule_of("spiffe://a/b"), rule_of("ops@a.example")
    ('dns:a.example', 'dns:a.example', 'uri:spiffe://a/b', 'email:ops@a.example')
    """
    kind, colon, name = rule.partition(":")
    if kind not in KINDS or not colon:
        kind, name = _kind_of(rule), rule
    if not name or not is_plain(name):
        raise ValueError(f"cert must be a name of printable ASCII, such as dns:billing.example, not {rule!r}")
    if kind == "ip":
        try:
            name = str(ipaddress.ip_address(name))
        except ValueError:
            raise ValueError(f"cert must be an address after ip:, not {rule!r}") from None
    return f"{kind}:{name}"


def _kind_of(name: str) -> str:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return "uri" if ":" in name else "email" if "@" in name else "dns"
    return "ip"


def is_plain(name: str) -> bool:
    """Whether it is printable ASCII."""
    return name.isascii() and name.isprintable()
