"""Ids of answers. Where callers are told apart, an id shows whose answer it is, without a list of them.

An id is 128 random bits, which nobody can guess, and two are never the same. One of a tenant's has 32 bits
more, a digest of the random ones and the tenant. Anyone who changes those has an id that no answer has.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets

RANDOM, TAG = 32, 8  # hexadecimal digits
_TAGGED = re.compile(rf"[0-9a-f]{{{RANDOM + TAG}}}")


def new_response_id(tenant: str = "") -> str:
    """Of an answer to a client of that tenant; '' where nobody is told apart."""
    drawn = secrets.token_hex(RANDOM // 2)
    return drawn + _tag(drawn, tenant) if tenant else drawn


def may_be_of(response_id: str, tenant: str) -> bool:
    """Whether it can be the id of an answer to that tenant: one without a tag, as servers without a clients
    file make them, can be anybody's. Who is nobody's tenant may name any."""
    if not tenant or not _TAGGED.fullmatch(response_id):
        return True
    return hmac.compare_digest(_tag(response_id[:RANDOM], tenant), response_id[RANDOM:])


def _tag(drawn: str, tenant: str) -> str:
    return hashlib.sha256(f"{drawn}:{tenant}".encode()).hexdigest()[:TAG]
