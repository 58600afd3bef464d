"""Fifty short prompts for a real base, some of which a tenant's billing adapter is chosen for."""

from __future__ import annotations

_THINGS = (
    "a fever", "a lease", "a loop in Python", "a bank loan", "the word house in French", "a contract",
    "a broken arm", "a list of numbers", "the heart", "a court", "an invoice", "the moon", "a river", "salt",
    "a train", "a tax", "a vaccine", "a dictionary", "an index fund", "a comma",
)  # fmt: skip
_ASKED = ("What is {}?", "Say one thing about {}.")
_BILLING = "An unpaid invoice and a credit note and a payment reminder about {}."

PROMPTS = tuple(
    [form.format(thing) for form in _ASKED for thing in _THINGS]
    + [_BILLING.format(thing) for thing in _THINGS[:10]]
)
