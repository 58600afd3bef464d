"""Issuers in the clients file: what may stand there, and what is refused in one line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from router.access.clients import parse_clients, removed
from router.access.issuers import ALGORITHMS, USUAL, Issuer
from router.errors import ConfigError
from tests.extensions.oidc.issuing import AUDIENCE, URL, Issuing

ISSUING = Issuing()
DOCUMENTED = Path(__file__).parents[2] / "docs" / "identity.md"


def test_an_issuer_and_its_client() -> None:
    clients = parse_clients(ISSUING.client() + ISSUING.table())
    assert clients.issuers == {URL: Issuer(URL, AUDIENCE, "", USUAL, 0.0)}
    found = clients.by_subject(URL, "billing")
    assert found is not None
    assert found.id == "billing"
    for issuer, subject in ((URL, "Billing"), (URL + "/", "billing"), ("", ""), ("", "billing"), (URL, "")):
        assert clients.by_subject(issuer, subject) is None


def test_the_example_of_the_page_is_a_clients_file() -> None:
    text = DOCUMENTED.read_text().partition("## JWT")[2].partition("```toml\n")[2].partition("```")[0]
    clients = parse_clients(text)
    assert [one.id for one in clients.all] == ["search"]
    assert clients.by_subject("https://login.example", "service-search") == clients.all[0]


def test_all_keys_of_an_issuer() -> None:
    text = ISSUING.table(jwks="/etc/keys.json", algorithms=["PS512", "ES384"], leeway_seconds=2)
    (found,) = parse_clients(text).issuers.values()
    assert (found.algorithms, found.leeway_seconds, str(found.file)) == (
        ("PS512", "ES384"),
        2.0,
        "/etc/keys.json",
    )


def test_only_public_keys_check_tokens() -> None:
    assert not [name for name in ALGORITHMS if name.startswith("HS") or name.lower() == "none"]


def test_a_client_may_have_several_proofs() -> None:
    text = ISSUING.table() + ISSUING.client() + f'cert = "x"\ntoken_sha256 = ["{"a" * 64}"]\n'
    clients = parse_clients(text)
    assert clients.by_names(["dns:x"]) == clients.by_subject(URL, "billing") == clients.all[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("issuer = 1", "under [[issuer]]"),
        ("issuer = [1]", "under [[issuer]]"),
        ("[[issuer]]", "[[issuer]] number 1: needs url"),
        (f'[[issuer]]\nurl = "{URL}"', "needs audience"),
        (ISSUING.table() * 2, "two issuers have the same url"),
        (ISSUING.table(audiense="x"), "unknown key 'audiense'; 'audience'?"),
        (ISSUING.table(audience=""), "audience must be a text"),
        (ISSUING.table(audience=["x"]), "audience must be a valid string"),
        (ISSUING.table(jwks="http://login.example"), "jwks must be an https URL or an absolute path"),
        (ISSUING.table(jwks="/etc/\x00"), "jwks must be an https URL or an absolute path"),
        (ISSUING.table(jwks="keys.json"), "jwks must be an https URL"),
        (ISSUING.table(jwks="file:///etc/keys.json"), "jwks must be an https URL"),
        (ISSUING.table(algorithms=[]), "algorithms must have at least 1"),
        (ISSUING.table(algorithms="RS256"), "algorithms must be"),
        (ISSUING.table(algorithms=["HS256"]), "public keys"),
        (ISSUING.table(algorithms=["RS256", "none"]), "not 'none'"),
        (ISSUING.table(algorithms=["rs256"]), "not 'rs256'"),
        (ISSUING.table(leeway_seconds=-1), "leeway_seconds must be greater"),
        (ISSUING.table(leeway_seconds=301), "leeway_seconds"),
        (ISSUING.table(leeway_seconds=True), "leeway_seconds"),
        (f'[[issuer]]\nurl = "{URL}"\naudience = "x"\nleeway_seconds = nan', "leeway_seconds"),
        (Issuing("http://login.example").table(), "needs jwks, since"),
        (Issuing("login").table(), "needs jwks, since"),
        (ISSUING.client(), f"no [[issuer]] has the url '{URL}'"),
        (ISSUING.table() + ISSUING.client() + ISSUING.client("other", "billing"), "same subject: 'billing'"),
        (ISSUING.table() + f'[[client]]\nid = "a"\nissuer = "{URL}"', "issuer and subject go together"),
        (f'[[client]]\nid = "a"\ntoken_sha256 = ["{"a" * 64}"]\nsubject = "a"', "go together"),
        (ISSUING.table() + '[[client]]\nid = "a"\nissuer = 7', "issuer must be"),
        (ISSUING.table() + f'[[client]]\nid = "a"\nissuer = "{URL}"\nsubject = ""', "subject must have"),
    ],
)
def test_a_mistake_is_told_in_one_line(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_clients(text)
    assert said in caught.value.message
    assert "\n" not in caught.value.message


def test_a_missing_library_is_told_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jwt.algorithms", None)
    assert len(parse_clients(f'[[client]]\nid = "a"\ntoken_sha256 = ["{"a" * 64}"]').all) == 1
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[jwt\]' in the checkout"):
        parse_clients(ISSUING.table())


def test_a_client_is_taken_out_and_its_issuer_stays() -> None:
    text = ISSUING.client() + "\n" + ISSUING.table() + "\n" + ISSUING.client("other")
    left = parse_clients(removed(text, "billing"))
    assert ([one.id for one in left.all], list(left.issuers)) == (["other"], [URL])
    left = parse_clients(removed(removed(text, "billing"), "other"))
    assert (left.all, list(left.issuers)) == ((), [URL])
