"""Settings → Shop, and its effect on customer pages."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from email import message_from_bytes
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select, text

from tests.support.campaigns import LaunchCampaign
from tests.support.smtp_relay import Relay
from webapp.accounts.models import AuditEntry
from webapp.campaigns.content.mail_merge import MailMerge
from webapp.campaigns.content.placeholders import EmailContent
from webapp.campaigns.sending import sender, test_emails
from webapp.core import settings as app_settings
from webapp.core.errors import InvalidInput
from webapp.core.extensions import db
from webapp.core.settings import Settings
from webapp.customers.models import Customer
from webapp.mail import addresses
from webapp.mail.plain_email import build_plain_email
from webapp.offers.models import Offer
from webapp.redemptions import group_commit, receipts
from webapp.redemptions.rules import RedemptionRequest
from webapp.shop import actions as shop_actions
from webapp.shop import queries as shop_queries
from webapp.shop.models import ShopValues, default_reason

URL = "/settings/shop"
FORM = {
    "name": "Blumen Müller",
    "sender_name": "Blumen Müller 🌷",
    "reply_to": "Laden@Example.com",
    "address": "Am Markt 1\r\n12345 Musterstadt\r\n",
    "colour": "#B4F",
    "locale": "de-at",
    "reason": "Sie bekommen diese Mail, weil Sie bei uns einkaufen.",
    "unsubscribe_words": "Keine Mails mehr",
    "button_words": "Jetzt einlösen",
    "link_words": "Oder öffnen Sie diese Adresse:",
}


def make_form(**values: str) -> dict[str, str]:
    return {**FORM, "colour": "#B400FF", "locale": "de-AT", **values}


def field_error(page: str, field: str) -> str:
    found = re.search(rf'id="{field}-error"(.*?)</div>', page, re.DOTALL)
    return html.unescape(found[1]) if found else ""


def test_the_defaults_come_from_the_environment(staff: FlaskClient) -> None:
    page = staff.get(URL).text
    assert 'value="Test shop"' in page
    assert shop_queries.get_shop() == shop_queries.default_shop()


@pytest.mark.parametrize(
    ("setting", "sender_name", "expected"),
    [
        ("offers@example.com", None, "Test shop <offers@example.com>"),
        ("Offers <offers@example.com>", None, "Offers <offers@example.com>"),
        ("offers@example.com", "", "Flowers <offers@example.com>"),
        ("Offers <offers@example.com>", "", "Flowers <offers@example.com>"),
        ("offers@example.com", "Tom at Flowers", "Tom at Flowers <offers@example.com>"),
    ],
    ids=["nothing saved", "setting with a name", "shop named", "name of the setting removed", "sender named"],
)
def test_emails_come_from_the_shop_unless_the_sender_has_a_name(
    with_settings: Callable[..., Settings],
    make_offer: Callable[..., Offer],
    make_customer: Callable[..., Customer],
    setting: str,
    sender_name: str | None,
    expected: str,
) -> None:
    with_settings(mail_default_sender=setting)
    if sender_name is not None:
        shop_actions.save_shop(ShopValues("Flowers", sender_name=sender_name), "tests")
    shop = shop_queries.get_shop()
    merge = MailMerge(EmailContent("Hello", "{{ link }}"), make_offer(), 0, shop=shop)

    emails = build_plain_email(shop, "ada@example.com", "Hello", "Text"), merge.build_message(make_customer())

    assert [message_from_bytes(email.as_bytes())["From"] for email in emails] == [expected] * 2
    assert addresses.format_sender(shop) == expected


def test_the_form_does_not_fill_in_the_sender_name(
    staff: FlaskClient, with_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    """Otherwise renaming the shop would leave the former name in the inbox."""
    with_settings(mail_default_sender=app_settings.load_settings({"INSTANCE_PATH": str(tmp_path)}).mail_default_sender)
    fields = re.findall(r'<input[^>]* name="sender_name"[^>]*>', staff.get(URL).text)
    assert [re.findall(r'value="(.*?)"', tag) for tag in fields] == [[""]]


def test_the_language_does_not_promise_translated_texts(staff: FlaskClient) -> None:
    assert "The texts of customer pages and receipts are always in English." in staff.get(URL).text


def test_saved_values_are_shown_and_audited(staff: FlaskClient) -> None:
    page = staff.post(URL, data=make_form(), follow_redirects=True).text
    assert "The shop details were saved." in page
    shop = shop_queries.get_shop()
    assert (shop.name, shop.colour, shop.locale) == ("Blumen Müller", "#b400ff", "de_AT")
    assert shop.address == "Am Markt 1\n12345 Musterstadt"
    assert "Keine Mails mehr" in page
    entry = db.session.scalars(select(AuditEntry).where(AuditEntry.action == "shop.saved")).one()
    assert entry.detail is not None
    assert entry.detail["changed"]["name"] == ["Test shop", "Blumen Müller"]


def submit_page(staff: FlaskClient, **values: str) -> None:
    """Submit the form as the page shows it, with some fields changed."""
    inputs = re.findall(r'<input[^>]* name="(\w+)"[^>]*>', page := staff.get(URL).text)
    shown = {name: re.search(rf'<input[^>]* name="{name}"[^>]* value="([^"]*)"', page) for name in inputs}
    form = {name: html.unescape(found[1]) for name, found in shown.items() if found}
    assert staff.post(URL, data=form | values).status_code == 302


def test_every_email_names_the_renamed_shop(
    staff: FlaskClient, launch_campaign: LaunchCampaign, make_customer: Callable[..., Customer], relay: Relay
) -> None:
    make_customer()
    submit_page(staff, name="Florist")
    submit_page(staff, name="Tulips", address="Road 1")
    frame_url = re.search(r'id="sample-frame"[^>]* src="([^"]+)"', staff.get(URL).text, re.DOTALL)
    assert frame_url is not None
    sample = staff.get(html.unescape(frame_url[1])).text
    campaign = launch_campaign()
    offer = db.session.get_one(Offer, campaign.offer_id)
    test_emails.send_test_email(EmailContent(), offer, "manager@example.com", "Mia")
    sender.send_pending_emails()
    record = group_commit.redeem(RedemptionRequest(channel="form", code="SUMMER25", email="ada@example.com"))
    receipts.send_receipt_email(record.offer_id, record.customer_id)

    reason = "You receive this email because you are a customer of Tulips."
    test_email, email, receipt = relay.messages
    assert all(reason in part for part in (sample, test_email.text, test_email.html, email.text, email.html))
    assert "Tulips" in receipt.text
    parts = [sample, *(part for message in relay.messages for part in (message.text, message.html))]
    assert not any(name in part for name in ("Test shop", "Florist") for part in parts)


@pytest.mark.parametrize("name", ["Test shop", "Florist"])
def test_a_stored_default_reason_follows_the_name(staff: FlaskClient, name: str) -> None:
    staff.post(URL, data=make_form(name="Florist"))
    # As earlier versions have stored it: with the name of SHOP_NAME, or with that of the shop.
    db.session.execute(text("update shop set reason = :reason"), {"reason": default_reason(name)})
    db.session.commit()
    assert shop_queries.get_shop().footer_reason == default_reason("Florist")
    submit_page(staff, name="Tulips", address="Road 1")
    assert shop_queries.get_shop().footer_reason == default_reason("Tulips")


@pytest.mark.parametrize("name", ["Test shop", "Florist", "Tulips"])
def test_an_entered_default_reason_is_stored_as_empty(staff: FlaskClient, name: str) -> None:
    staff.post(URL, data=make_form(name="Florist"))
    staff.post(URL, data=make_form(name="Tulips", reason=f" {default_reason(name)} "))
    assert db.session.execute(text("select reason from shop")).scalar() == ""
    field = re.search(r'<input[^>]* name="reason"[^>]*>', staff.get(URL).text)
    assert field is not None
    assert 'value=""' in field[0]
    assert f'placeholder="{default_reason("Tulips")}"' in field[0]


def test_a_reason_that_staff_wrote_is_kept(staff: FlaskClient) -> None:
    reason = default_reason("the market hall")
    staff.post(URL, data=make_form(name="Florist", reason=reason))
    submit_page(staff, name="Tulips", address="Road 1")
    assert shop_queries.get_shop().footer_reason == reason


def test_saving_the_same_values_again_changes_nothing(staff: FlaskClient) -> None:
    staff.post(URL, data=make_form())
    staff.post(URL, data=make_form())
    assert len(db.session.scalars(select(AuditEntry).where(AuditEntry.action == "shop.saved")).all()) == 1
    assert db.session.execute(text("select count(*) from shop")).scalar() == 1


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("name", "", "Enter the name of your shop."),
        ("name", "  ", "Enter the name of your shop."),
        ("name", "x" * 10_000, "at most 100 characters; this text has 10,000"),
        ("name", "Shop\r\nBcc: eve@example.com", "Use a single line."),
        ("name", "Shop\0", "cannot be sent in an email"),
        ("name", "Shop\u2028two", "cannot be sent in an email"),
        ("sender_name", "Shop\nBcc: eve@example.com", "Use a single line."),
        ("sender_name", "x" * 10_000, "at most 100 characters"),
        ("reply_to", "not an address", "This email address is not valid."),
        ("reply_to", "a@b@example.com", "This email address is not valid."),
        ("reply_to", "ada@example.com\r\nBcc: eve@example.com", "This email address is not valid."),
        ("reply_to", "jörg@example.com", "without accents before the @"),
        ("colour", "teal", "six hexadecimal digits"),
        ("colour", "#12345", "six hexadecimal digits"),
        ("colour", "#0f766e; } body { display: none", "six hexadecimal digits"),
        ("locale", "German", "a language tag such as en"),
        ("locale", "../../etc", "a language tag such as en"),
        ("reason", "x" * 301, "at most 300 characters"),
        ("reason", "a\nb", "Use a single line."),
        ("unsubscribe_words", "", "Enter the text of the link."),
        ("button_words", " ", "Enter the text of the button."),
        ("address", "\n".join("line" for _ in range(9)), "at most 8 lines; the address has 9"),
        ("address", "x" * 10_000, "at most 500 characters"),
    ],
)
def test_invalid_input_is_reported_at_its_field_and_kept(
    staff: FlaskClient, field: str, value: str, message: str
) -> None:
    response = staff.post(URL, data=make_form(**{field: value, "link_words": "what I typed"}))
    assert response.status_code == 422
    assert message in field_error(response.text, field)
    assert 'value="what I typed"' in response.text
    if value.isprintable() and value.strip():
        assert html.escape(value, quote=False) in response.text.replace("&#39;", "'")
    assert db.session.execute(text("select count(*) from shop")).scalar() == 0


def colour_input(page: str) -> str:
    found = re.search(r'<input[^>]* name="colour"[^>]*>', page)
    assert found is not None
    return found[0]


def test_an_invalid_colour_is_shown_in_a_text_input(staff: FlaskClient) -> None:
    staff.post(URL, data=make_form())
    valid = colour_input(staff.get(URL).text)
    assert 'type="color"' in valid
    assert 'value="#b400ff"' in valid
    invalid = colour_input(staff.post(URL, data=make_form(colour="teal")).text)
    assert 'type="text"' in invalid
    assert 'value="teal"' in invalid


def test_all_invalid_fields_are_reported_together(app: Flask) -> None:
    with pytest.raises(InvalidInput) as raised:
        shop_actions.save_shop(ShopValues("", colour="red", reply_to="x"), "tests")
    assert {error.field for error in raised.value.errors} == {"name", "colour", "reply_to"}


def test_a_viewer_can_neither_see_nor_change_the_settings(sign_in: Callable[..., FlaskClient]) -> None:
    viewer = sign_in("viewer")
    assert [viewer.get(URL).status_code, viewer.post(URL, data=make_form()).status_code] == [403, 403]
    assert viewer.post(f"{URL}/relay").status_code == 403
    assert f'href="{URL}"' not in viewer.get("/settings/profile").text


def test_the_sample_shows_the_input_and_saves_nothing(staff: FlaskClient) -> None:
    fragment = staff.get(f"{URL}/sample", query_string=make_form())
    frame_url = re.search(r'src="([^"]+)"', fragment.text)
    assert frame_url is not None
    frame = staff.get(html.unescape(frame_url[1]))
    for part in ("Blumen Müller", "#b400ff", "Keine Mails mehr", "12345 Musterstadt", "Jetzt einlösen", "25&nbsp;%"):
        assert part in frame.text.replace("\xa0", "&nbsp;")
    assert "sandbox" in frame.headers["Content-Security-Policy"]
    assert db.session.execute(text("select count(*) from shop")).scalar() == 0


def test_there_is_no_sample_of_invalid_input(staff: FlaskClient) -> None:
    fragment = staff.get(f"{URL}/sample", query_string=make_form(colour="}body{}"))
    assert "<iframe" not in fragment.text
    assert "body{}" not in staff.get(f"{URL}/sample/frame", query_string=make_form(colour="}body{}")).text


def test_the_sample_escapes_the_input(staff: FlaskClient) -> None:
    frame = staff.get(f"{URL}/sample/frame", query_string=make_form(name="<script>alert(1)</script>"))
    assert "<script>" not in frame.text
    assert "&lt;script&gt;" in frame.text


def test_customer_pages_show_the_shop_name(client: FlaskClient) -> None:
    assert "Test shop" in client.get("/redeem").text
    shop_actions.save_shop(ShopValues("Blumen & Co"), "tests")
    page = client.get("/redeem").text
    assert "Blumen &amp; Co" in page
    assert "Test shop" not in page
