"""Single emails as plain text, their addresses, and the locale of a recipient."""

from __future__ import annotations

import email
import email.policy
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from flask import Flask

from webapp.core.settings import Settings
from webapp.customers.models import Customer
from webapp.mail import addresses, locales, plain_email
from webapp.mail.outgoing_message import OutgoingMessage
from webapp.shop.models import ShopValues


def test_an_email_has_the_sender_and_the_reply_address_of_the_shop(
    app: Flask, with_settings: Callable[..., Settings]
) -> None:
    with_settings(mail_default_sender="Configured <offers@münze.example>")
    shop = ShopValues("Blumen", sender_name="Blumen, Müller", reply_to="laden@bücher.example")
    before = datetime.now(UTC).replace(microsecond=0)
    built = plain_email.build_plain_email(shop, "ada@example.com", "Grüße\r\nBcc: eve@example.com", "Hallo\n…")
    message = email.message_from_bytes(built.raw, policy=email.policy.default)
    assert (built.sender, built.to) == ("offers@xn--mnze-0ra.example", "ada@example.com")
    assert str(message["From"]) == '"Blumen, Müller" <offers@xn--mnze-0ra.example>'
    assert str(message["Reply-To"]) == "laden@xn--bcher-kva.example"
    assert str(message["To"]) == "ada@example.com"
    assert (message["Subject"], message["Bcc"]) == ("Grüße Bcc: eve@example.com", None)
    assert message["Message-ID"].endswith("@xn--mnze-0ra.example>")
    assert message["Auto-Submitted"] == "auto-generated"
    assert before <= message["Date"].datetime <= datetime.now(UTC)
    assert message.get_content().replace("\r\n", "\n").rstrip("\n") == "Hallo\n…"
    without = plain_email.build_plain_email(ShopValues("Blumen"), "ada@example.com", "Hi", "Hi")
    assert b"Reply-To" not in without.raw


# --- addresses --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("email_stored", "as_given", "to"),
    [
        ("ada.l@example.com", "Ada.L@Example.com", "Ada.L@example.com"),
        ("ada.l@xn--fa-hia.de", " Ada.L@faß.de ", "Ada.L@xn--fa-hia.de"),
        # A local part in another form is not the stored one in its original case.
        ("ada@example.com", "other@example.com", "ada@example.com"),
    ],
)
def test_the_recipient_has_the_original_case_and_the_stored_domain(email_stored: str, as_given: str, to: str) -> None:
    assert addresses.recipient_address(Customer(email=email_stored, email_as_given=as_given)) == to


def test_an_invalid_recipient_is_named_as_it_was_entered(app: Flask) -> None:
    with pytest.raises(ValueError, match=r"^“Ada at home” is not a valid email address$"):
        addresses.recipient_address(Customer(email="ada at home", email_as_given="Ada at home"))


@pytest.mark.parametrize(
    ("configured", "address"),
    [
        ("offers@Example.com", "offers@Example.com"),
        ("Shop <offers@MÜNZE.example>", "offers@xn--mnze-0ra.example"),
    ],
)
def test_the_sender_has_an_idna_domain(configured: str, address: str) -> None:
    assert addresses.sender_address(configured) == address


@pytest.mark.parametrize("character", ["\r", "\n", "\0", "<", ">", " "])
def test_an_address_with_a_character_that_ends_a_command_is_bad(character: str) -> None:
    good, bad = "ada@example.com", f"ada{character}@example.com"
    assert not OutgoingMessage(good, good, b"").has_bad_headers()
    assert OutgoingMessage(bad, good, b"").has_bad_headers()
    assert OutgoingMessage(good, bad, b"").has_bad_headers()


# --- locales ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tag", "locale"),
    [
        ("de-AT", "de_AT"),
        ("de_AT", "de_AT"),
        ("zh-Hant-TW", "zh_Hant_TW"),
        ("de-AT-XX-XX", "de_AT"),
        ("de-XX", "de"),
        ("xx", "fr_CH"),
        ("", "fr_CH"),
        (None, "fr_CH"),
    ],
)
def test_the_most_specific_known_locale_is_used(tag: str | None, locale: str) -> None:
    assert locales.resolve_locale(tag, "fr_CH") == locale


@pytest.mark.parametrize(("locale", "expected"), [("ar_EG", True), ("he", True), ("fa", True), ("de_AT", False)])
def test_a_locale_has_the_direction_of_its_script(locale: str, expected: bool) -> None:
    assert locales.is_locale_right_to_left(locale) is expected
