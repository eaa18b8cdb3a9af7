"""Email addresses in their canonical form."""

from __future__ import annotations

import pytest
from flask import Flask

from webapp.core.email_addresses import MAX_EMAIL_LENGTH, hash_email, normalise_email, redact_email_addresses
from webapp.core.errors import InvalidInput


@pytest.mark.parametrize(
    ("given", "canonical"),
    [
        (" Ada@Example.COM\n", "ada@example.com"),
        ("o'Brien+News@Example.com", "o'brien+news@example.com"),
        ("Rene\u0301@example.com", "ren\u00e9@example.com"),
        ("Ren\u00e9@example.com", "ren\u00e9@example.com"),
        ("STRAUSS@example.com", "strauss@example.com"),
        ("Strau\u00df@example.com", "strau\u00df@example.com"),
        ("ada@Bu\u0308cher.example", "ada@xn--bcher-kva.example"),
        ("ada@B\u00dcCHER.example", "ada@xn--bcher-kva.example"),
        ("ada@xn--bcher-kva.example", "ada@xn--bcher-kva.example"),
        ("ada@XN--BCHER-KVA.example", "ada@xn--bcher-kva.example"),
        ("ada@stra\u00dfe.example", "ada@xn--strae-oqa.example"),
        ("\u0939\u093f\u0928\u094d\u0926\u0940@example.com", "\u0939\u093f\u0928\u094d\u0926\u0940@example.com"),
    ],
)
def test_every_spelling_of_an_address_has_one_canonical_form(given: str, canonical: str) -> None:
    assert normalise_email(given) == canonical


@pytest.mark.parametrize(
    "given",
    [
        "a" * 64 + "@example.com",
        "\u00e9" * 32 + "@example.com",
        f"ada@{'a' * 63}.example",
        f"ada@{'.'.join(['b' * 61] * 4)}.de"[:MAX_EMAIL_LENGTH],
    ],
)
def test_an_address_of_the_maximum_length_is_valid(given: str) -> None:
    assert normalise_email(given) == given


@pytest.mark.parametrize(
    "given",
    [
        "a" * 65 + "@example.com",
        "\u00e9" * 32 + "a@example.com",
        f"ada@{'a' * 64}.example",
        f"ada@{'.'.join(['b' * 61] * 4)}.dee",
        "@example.com",
        ".\u00e9@example.com",
        "\u00e9.@example.com",
        "\u00e9..a@example.com",
        ".ada@example.com",
        "ada.@example.com",
        "ad..a@example.com",
        "\u00e9 a@example.com",
        "ada@example",
        "ada@example.1",
        "ada@-example.com",
        "ada@xn--a.example",
        "\u00e9\u200b@example.com",
        "example.com",
        "a@b@example.com",
    ],
)
def test_an_address_that_cannot_be_delivered_to_is_invalid(app: Flask, given: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        normalise_email(given)
    assert [(error.field, error.key) for error in raised.value.errors] == [("email", "email_invalid")]


@pytest.mark.parametrize("given", ["", " \t"])
def test_a_blank_address_is_missing(app: Flask, given: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        normalise_email(given)
    assert raised.value.errors[0].key == "email_missing"


def test_a_hash_is_that_of_the_address_in_utf_8() -> None:
    expected = "sha256:b5fc85e55755f9e0d030a10ab4429b6b2944855f9a0d60077fe832becbc41d72"
    assert hash_email("ada@example.com") == expected


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("550 <ada@example.com> unknown", "550 … unknown"),
        ('550 "Ada L"@example.com unknown', "550 … unknown"),
        ("550 <ren\u00e9@example.com> unknown", "550 … unknown"),
        ("550 user@ unknown", "550 user@ unknown"),
    ],
)
def test_addresses_in_a_reply_are_redacted(text: str, redacted: str) -> None:
    assert redact_email_addresses(text) == redacted
    assert redact_email_addresses("x" * 3000) == "x" * 2000
