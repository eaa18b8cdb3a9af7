"""The rendered emails of a campaign, checked in the bytes that are sent."""

from __future__ import annotations

import email
import email.policy
import re
import unicodedata
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from email.message import EmailMessage
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from tests.support.smtp_relay import Relay
from webapp.campaigns import tokens as campaign_tokens
from webapp.campaigns.content import design
from webapp.campaigns.content.mail_merge import MailMerge
from webapp.campaigns.content.placeholders import EmailContent
from webapp.core import formatting
from webapp.core.email_addresses import normalise_email
from webapp.core.extensions import db
from webapp.core.settings import Settings
from webapp.customers.models import Customer
from webapp.mail import addresses, locales, smtp
from webapp.mail import headers as mail_headers
from webapp.offers.models import Offer
from webapp.redemptions import personal_codes, personal_links
from webapp.redemptions.personal_links import PREVIEW_CUSTOMER_ID
from webapp.shop import actions as shop_actions
from webapp.shop.models import ShopValues


def build_customer(
    name: str = "Ada Lovelace", address: str = "ada@example.com", number: int = 7, locale: str | None = None
) -> Customer:
    return Customer(id=number, email=normalise_email(address), email_as_given=address, name=name, locale=locale)


def parse_message(raw: bytes) -> EmailMessage:
    return email.message_from_bytes(raw, policy=email.policy.default)


def body(message: EmailMessage, kind: str) -> str:
    part = message.get_body((kind,))
    assert part is not None
    return str(part.get_content())


@pytest.fixture
def render(app: Flask, make_offer: Callable[..., Offer]) -> Callable[..., EmailMessage]:
    """Render an email: `render(text="Hi {{ link }}", to=build_customer("Ada"))`."""

    def render(to: Customer | None = None, values: dict[str, Any] | None = None, **content: str) -> EmailMessage:
        offer = make_offer(**(values or {}))
        return parse_message(
            MailMerge(EmailContent(**content), offer, 3)
            .build_message(to or build_customer())
            .raw.replace(b"\r\n", b"\n")
        )

    return render


def test_both_default_bodies_contain_code_links_and_end_date(render: Callable[..., EmailMessage]) -> None:
    message = render(values={"ends_at": datetime(2030, 6, 1, tzinfo=UTC)})
    for kind in ("plain", "html"):
        content = body(message, kind)
        assert "SUMMER25" in content
        assert personal_links.build_personal_url(1, 7) in content
        assert campaign_tokens.build_unsubscribe_url(7, 3) in content
        assert "31 May 2030" in content
        assert "Ada Lovelace" in content


def test_the_default_subject_names_discount_and_offer(render: Callable[..., EmailMessage]) -> None:
    assert render()["Subject"] == "25% off for you: Summer"


def test_text_and_html_are_alternatives(render: Callable[..., EmailMessage]) -> None:
    message = render()
    assert message.get_content_type() == "multipart/alternative"
    assert [part.get_content_type() for part in message.iter_parts()] == ["text/plain", "text/html"]


def test_an_offer_without_end_is_valid_until_further_notice(render: Callable[..., EmailMessage]) -> None:
    assert "Your code is valid until further notice." in body(render(values={"ends_at": None}), "plain")


def test_a_customer_without_name_gets_the_fallback_text(render: Callable[..., EmailMessage]) -> None:
    assert body(render(to=build_customer("")), "plain").startswith("Hello there,")


def test_html_in_a_name_is_escaped(render: Callable[..., EmailMessage]) -> None:
    message = render(to=build_customer("<script>alert(1)</script>"), text="Hi {{ customer.name }}")
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in body(message, "html")
    assert "<script>" not in body(message, "html")
    assert "<script>alert(1)</script>" in body(message, "plain")


def test_a_line_break_in_a_name_cannot_inject_a_header(render: Callable[..., EmailMessage]) -> None:
    message = render(to=build_customer("Ada\r\nBcc: eve@example.com\r\n\r\nBody"), subject="For {{ customer.name }}")
    assert message["Bcc"] is None
    assert message["Subject"] == "For Ada Bcc: eve@example.com Body"
    assert message["To"].addresses[0].display_name == "Ada Bcc: eve@example.com Body"


@pytest.mark.parametrize(
    "name", ["Zoë 🎉👨‍👩‍👧", "עדה לאבלייס", "آدا لوفليس", "李" * 60, 'O"Hara \\ Co', "Lovelace, Ada", "a=?b", "ß" * 90]
)
def test_unusual_names_arrive_unchanged(render: Callable[..., EmailMessage], name: str) -> None:
    message = render(to=build_customer(name), subject="For {{ customer.name }}", text="Dear {{ customer.name }}, hello")
    # Python's newer parser puts a space between the encoded words of a long name.
    assert message["To"].addresses[0].display_name.replace(" ", "") == name.replace(" ", "")
    assert message["Subject"] == f"For {isolate(name, 'For')}"
    assert body(message, "plain").startswith(f"Dear {isolate(name, 'Dear')}, hello")


def test_placeholders_in_a_name_are_not_filled_in(render: Callable[..., EmailMessage]) -> None:
    assert "{{ offer.code }}" in body(
        render(to=build_customer("{{ offer.code }}"), text="Hi {{ customer.name }}"), "plain"
    )


def test_a_plain_text_body_gets_an_html_body_in_the_shop_design(render: Callable[..., EmailMessage]) -> None:
    html = body(render(text="One <b>\n\n{{ offer.code }}\n\n{{ link }}\n\nSee https://example.com/a?b=1&c=2."), "html")
    assert "One &lt;b&gt;" in html
    assert 'href="https://example.com/a?b=1&amp;c=2"' in html
    assert "Redeem now</a>" in html
    assert "Test shop" in html


def test_an_html_body_gets_a_plain_text_body(render: Callable[..., EmailMessage]) -> None:
    html = '<style>p{color:red}</style><h1>Hi {{ customer.name }}</h1><p>Your <a href="{{ link }}">page</a></p>'
    message = render(html=html)
    text = body(message, "plain")
    assert text.startswith(f"Hi Ada Lovelace\n\nYour page: {personal_links.build_personal_url(1, 7)}")
    assert "color" not in text
    assert 'style="color: red;"' in body(message, "html")


def test_custom_html_gets_an_unsubscribe_link(render: Callable[..., EmailMessage]) -> None:
    message = render(html="<html><body><p>Hello</p></body></html>", text="Hello")
    assert all(campaign_tokens.build_unsubscribe_url(7, 3) in body(message, kind) for kind in ("plain", "html"))


def test_a_custom_unsubscribe_link_is_not_duplicated(render: Callable[..., EmailMessage]) -> None:
    message = render(html='<a href="{{ unsubscribe }}">bye</a>', text="bye: {{ unsubscribe }}")
    assert [body(message, kind).count("/u/") for kind in ("plain", "html")] == [1, 1]


def test_an_offer_with_personal_codes_sends_the_personal_code(render: Callable[..., EmailMessage]) -> None:
    message = render(values={"personal_code_required": True}, text="Code {{ offer.code }}")
    assert f"Code {personal_codes.derive_personal_code('SUMMER25', 1, 7)}" in body(message, "plain")


def test_an_amount_discount_is_formatted_as_money(render: Callable[..., EmailMessage]) -> None:
    values = {"discount_type": "amount", "amount": 500, "currency": "EUR"}
    assert render(values=values, subject="{{ offer.discount }}")["Subject"] == "€5.00"


def test_an_email_has_bulk_mail_headers(render: Callable[..., EmailMessage]) -> None:
    message = render()
    assert message["From"].addresses[0].addr_spec == "offers@example.com"
    assert message["To"].addresses[0].addr_spec == "ada@example.com"
    assert message["Precedence"] == "bulk"
    assert message["Auto-Submitted"] == "auto-generated"
    assert message["List-Id"] == "Test shop <offers.example.com>"
    assert message["X-Campaign-Id"] == "3"
    assert message["Date"].datetime.tzinfo is not None
    assert len(message.get_all("Message-ID") or []) == 1


def test_the_message_id_is_stable_and_reveals_no_host_name(render: Callable[..., EmailMessage]) -> None:
    first = render()["Message-ID"]
    assert (
        first
        == campaign_tokens.build_message_id(3, 7, "example.com")
        != campaign_tokens.build_message_id(3, 8, "example.com")
    )
    assert first.endswith("@example.com>")


def test_one_click_unsubscribe_needs_https(
    app: Flask, make_offer: Callable[..., Offer], with_settings: Callable[..., Settings]
) -> None:
    offer = make_offer()
    plain = parse_message(MailMerge(EmailContent(), offer, 3).build_message(build_customer()).raw)
    with_settings(public_url="https://offers.example.com")
    secure = parse_message(MailMerge(EmailContent(), offer, 3).build_message(build_customer()).raw)
    assert plain["List-Unsubscribe-Post"] is None
    assert secure["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"


def test_a_long_list_unsubscribe_is_never_encoded(
    app: Flask, make_offer: Callable[..., Offer], with_settings: Callable[..., Settings]
) -> None:
    with_settings(public_url="https://" + "a" * 60 + ".example.com/" + "b" * 200)
    raw = MailMerge(EmailContent(), make_offer(), 3).build_message(build_customer()).raw
    assert b"=?" not in raw.partition(b"\r\n\r\n")[0]
    assert f"<{campaign_tokens.build_unsubscribe_url(7, 3)}>" in parse_message(raw)["List-Unsubscribe"]


def test_the_envelope_recipient_has_an_idna_2008_domain(app: Flask) -> None:
    assert addresses.recipient_address(build_customer(address="Ada.L@faß.de")) == "Ada.L@xn--fa-hia.de"


def test_a_header_with_a_line_break_is_rejected() -> None:
    with pytest.raises(ValueError, match="line break"):
        mail_headers.format_header("Subject", "a\nb")


def test_a_sender_with_a_line_break_is_rejected(
    app: Flask, make_offer: Callable[..., Offer], with_settings: Callable[..., Settings]
) -> None:
    with_settings(mail_default_sender="Shop\r\nBcc: x <a@example.com>")
    offer = make_offer()
    with pytest.raises(ValueError, match="line break"):
        MailMerge(EmailContent(), offer, 3)


TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc", "Co"), include_characters="\n\t"), max_size=300)
PLAIN = TEXT.map(lambda value: value.replace("{", "("))
LOCALES = ("de", "fr-CH", "ar-EG", "he", "hi-Deva-IN", "en-US", "xx", "de_de_de_de", None)


BIDI_CONTROLS = ("LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI")
RIGHT_TO_LEFT = ("R", "AL", "AN")


def isolate(value: str, context: str) -> str:
    """Isolate a value of the other direction, by the tables of the standard library."""
    strong = [b for c in context if (b := unicodedata.bidirectional(c)) in ("L", "R", "AL")]
    base_is_rtl = bool(strong) and strong[0] != "L"
    directions = {unicodedata.bidirectional(c) for c in value}
    is_opposite = "L" in directions if base_is_rtl else bool(directions & set(RIGHT_TO_LEFT))
    return f"\u2068{value}\u2069" if is_opposite else value


@given(name=TEXT, before=PLAIN, after=PLAIN, locale=st.sampled_from(LOCALES))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_fast_rendering_equals_standard_library_rendering(
    session_app: Flask, name: str, before: str, after: str, locale: str | None
) -> None:
    """The standard library fills in the text first and then serialises all of it."""
    source = before + "{{ customer.name }}" + after + "{{ offer.ends }}{{ customer.name or 'x' }}{{ customer.name }}"
    subject = "{{ offer.discount }} {{ customer.name }}"
    with session_app.app_context():
        ends = datetime(2030, 6, 1, tzinfo=UTC)
        merge = MailMerge(
            EmailContent(subject, source + "{{ unsubscribe }}", "<p>{{ unsubscribe }}</p>"), _offer(ends), 3
        )
        raw = merge.build_message(build_customer(name, number=7, locale=locale)).raw
        unsubscribe = campaign_tokens.build_unsubscribe_url(7, 3)
    known_locale = locales.resolve_locale(locale, "en")
    clean_name = " ".join("".join(" " if unicodedata.category(c) in ("Zl", "Zp") else c for c in name).split())
    clean_name = "".join(c for c in clean_name if unicodedata.bidirectional(c) not in BIDI_CONTROLS)
    day = formatting.format_last_day(ends, "UTC", known_locale)
    expected = EmailMessage(policy=email.policy.SMTP)
    shown, ends_on = (isolate(value, before + after) for value in (clean_name, day))
    content = f"{before}{shown}{after}{ends_on}{shown or 'x'}{shown}{unsubscribe}"
    expected.set_content(content.replace("\r\n", "\n").replace("\r", "\n"), cte="quoted-printable")
    message = parse_message(raw)
    plain_part = message.get_body(("plain",))
    assert plain_part is not None
    assert _lines(plain_part.get_payload(decode=True)) == _lines(expected.get_payload(decode=True))
    amount = formatting.format_money(5, "EUR", known_locale)
    shown, amount = (isolate(value, before + after) for value in (clean_name, amount))
    assert message["Subject"] == " ".join(f"{amount} {shown}".split())
    _assert_valid_lines(raw)


def _assert_valid_lines(raw: bytes) -> None:
    """Check line ends and line lengths.

    No bare CR or LF, at most 998 octets in the headers (RFC 5322, 2.1.1) and 76 in the bodies (RFC 2045, 6.7).
    """
    bare = raw.replace(b"\r\n", b"")
    assert b"\n" not in bare
    assert b"\r" not in bare
    headers = raw.partition(b"\r\n\r\n")[0]
    assert headers.isascii()
    assert max(map(len, headers.split(b"\r\n"))) <= 998
    # All headers but those with URLs (RFC 2369) keep to the recommended 78 octets.
    assert all(len(line) <= 78 for line in headers.split(b"\r\n") if b"http" not in line and b"mailto" not in line)
    assert all(len(line) <= 76 for part in raw.split(b"--=_")[1:] for line in part.split(b"\r\n")[4:])


@pytest.mark.parametrize(
    ("locale", "subject", "ends"),
    [
        ("de", "12,5 % off", "31. Mai 2030"),
        ("en-US", "12.5% off", "May 31, 2030"),
        ("fr-CH", "12,5% off", "31 mai 2030"),
        ("tr", "%12,5 off", "31 Mayıs 2030"),
        ("ar-EG", "\u2068١٢٫٥٪\u061c\u2069 off", "٣١ مايو ٢٠٣٠"),
        ("fa", "\u2068۱۲٫۵٪\u2069 off", "۳۱ مهٔ ۲۰۳۰"),
        ("he", "12.5% off", "31 במאי 2030"),
        ("de-XX", "12,5 % off", "31. Mai 2030"),
        ("xx", "12.5% off", "31 May 2030"),
        ("../../etc/passwd", "12.5% off", "31 May 2030"),
        ("", "12.5% off", "31 May 2030"),
        (None, "12.5% off", "31 May 2030"),
    ],
)
def test_percentages_and_dates_follow_the_recipients_locale(
    render: Callable[..., EmailMessage], locale: str | None, subject: str, ends: str
) -> None:
    values = {"percent": Decimal("12.5"), "ends_at": datetime(2030, 6, 1, tzinfo=UTC)}
    message = render(to=build_customer(locale=locale), values=values, subject="{{ offer.discount }} off")
    assert message["Subject"] == subject
    assert all(ends in body(message, kind) for kind in ("plain", "html"))


@pytest.mark.parametrize(
    ("locale", "amount"), [("de", "1.234,50\xa0€"), ("en", "€1,234.50"), ("ar-EG", "\u200f١٬٢٣٤٫٥٠\xa0€")]
)
def test_money_follows_the_recipients_locale(render: Callable[..., EmailMessage], locale: str, amount: str) -> None:
    values = {"discount_type": "amount", "amount": 123450, "currency": "EUR"}
    assert amount in body(render(to=build_customer(locale=locale), values=values, text="{{ offer.discount }}"), "plain")


def test_an_unknown_locale_falls_back_to_the_shops(render: Callable[..., EmailMessage]) -> None:
    shop_actions.save_shop(ShopValues("Laden", locale="de"), "tests")
    assert render(to=build_customer(locale="xx"), subject="{{ offer.discount }}")["Subject"] == "25 %"


def test_each_locale_is_rendered_once(app: Flask, make_offer: Callable[..., Offer]) -> None:
    merge = MailMerge(EmailContent(), make_offer(), 3)
    for number in range(20):
        for locale in LOCALES:
            merge.build_message(build_customer(number=number + 1, locale=locale))
    assert len(merge._messages_by_values) <= len({locales.resolve_locale(tag, "en") for tag in LOCALES})


def test_recipients_of_one_campaign_get_their_own_locale_and_name(app: Flask, make_offer: Callable[..., Offer]) -> None:
    content = EmailContent("{{ offer.discount }} for {{ customer.name }}", "To {{ customer.email }} {{ link }}")
    merge = MailMerge(content, make_offer(percent=Decimal("12.5"), ends_at=None), 3)
    recipients = (("Ada", "de"), ("Bob", "en-US"), ("Cleo", "de"), ("Dan", None), ("Eve", "tr"))
    messages = [
        parse_message(merge.build_message(build_customer(name, f"{name}@Example.com", number, locale)).raw)
        for number, (name, locale) in enumerate(recipients, 1)
    ]
    assert [str(message["Subject"]) for message in messages] == [
        "12,5 % for Ada", "12.5% for Bob", "12,5 % for Cleo", "12.5% for Dan", "%12,5 for Eve",
    ]  # fmt: skip
    for number, (message, (name, _)) in enumerate(zip(messages, recipients, strict=True), 1):
        link = personal_links.build_personal_url(1, number)
        assert body(message, "plain").startswith(f"To {name}@Example.com {link}")


def test_locales_that_differ_in_one_value_only_are_not_mixed_up(app: Flask, make_offer: Callable[..., Offer]) -> None:
    ends_at = datetime(2099, 6, 1, tzinfo=UTC)
    merge = MailMerge(EmailContent("{{ offer.discount }} until {{ offer.ends }}"), make_offer(ends_at=ends_at), 3)

    emails = [merge.build_message(build_customer(locale=locale)).raw for locale in ("en", "nl", "en")]

    assert [str(parse_message(raw)["Subject"]) for raw in emails] == [
        "25% until 31 May 2099", "25% until 31 mei 2099", "25% until 31 May 2099",
    ]  # fmt: skip


def test_the_design_of_a_right_to_left_shop_has_its_direction(render: Callable[..., EmailMessage]) -> None:
    assert 'dir="rtl"' not in body(render(), "html")
    shop_actions.save_shop(ShopValues("Shop", locale="he"), "tests")
    assert 'dir="rtl"' in body(render(values={"code": "OTHER"}), "html")


def test_a_code_that_was_typed_as_it_is_written_is_found(app: Flask, make_offer: Callable[..., Offer]) -> None:
    offer = make_offer("Summer-25", ends_at=None)
    preview = MailMerge(EmailContent(text="Use Summer-25 für 25 %"), offer, 3).preview(build_customer())
    assert preview.warnings == ()
    assert preview.html_size == len(preview.html.encode()) > len(preview.html)


def test_a_test_email_has_its_own_message_id_and_no_return_path_of_a_customer(
    app: Flask, make_offer: Callable[..., Offer], with_settings: Callable[..., Settings]
) -> None:
    with_settings(mail_bounce_address="bounces@example.com")
    offer = make_offer()
    test = MailMerge(EmailContent(), offer, 0, token="test.1").build_message(build_customer())
    real = MailMerge(EmailContent(), offer, 3).build_message(build_customer())
    assert (test.sender, parse_message(test.raw)["Message-ID"]) == ("offers@example.com", "<test.1@example.com>")
    assert campaign_tokens.parse_return_path(str(real.sender)) == (3, 7)


def test_an_offer_without_end_uses_the_fallback_of_the_placeholder(render: Callable[..., EmailMessage]) -> None:
    message = render(values={"ends_at": None}, text='Bis {{ offer.ends or "auf weiteres" }}.')
    assert body(message, "plain").startswith("Bis auf weiteres.")


# --- bytes received by the relay --------------------------------------------------------------------


@pytest.fixture
def send_and_receive(app: Flask, relay: Relay, make_offer: Callable[..., Offer]) -> Callable[..., bytes]:
    """Send an email to a customer; return the bytes that the relay received."""

    def send(to: Customer, **content: str) -> bytes:
        message = MailMerge(EmailContent(**content), make_offer(), 3).build_message(to)
        with smtp.create_relay_connection() as connection:
            connection.send(message)
        return relay.messages[-1].raw

    return send


ODD_NAMES = (
    "Zoë 🎉👨‍👩‍👧",
    "עדה לאבלייס",
    "آدا لوفليس",
    "Ada\u202eecalevoL",
    "李" * 80,
    "x" * 100,
    "Ada " * 30,
    'O"Hara \\ Co',
    "Lovelace, Ada",
    "=?utf-8?q?a?=",
    "Ada\r\nBcc: eve@example.com\r\n\r\nBody",
    ".\r\n.",
)


@pytest.mark.parametrize("name", ODD_NAMES)
def test_received_bytes_are_valid_for_unusual_names(send_and_receive: Callable[..., bytes], name: str) -> None:
    raw = send_and_receive(
        build_customer(name),
        subject="For {{ customer.name }} and " + "a long subject " * 9,
        text=f"{name}\n.\n{name * 20}",
    )
    _assert_valid_lines(raw)
    message = parse_message(raw)
    plain = " ".join(name.split()).replace("\u202e", "")
    shown = isolate(plain, "For")
    assert message["Subject"] == " ".join(f"For {shown} and {'a long subject ' * 9}".split())
    assert message["To"].addresses[0].display_name.replace(" ", "") == plain.replace(" ", "")
    assert message["Bcc"] is None
    assert not message.defects


def test_every_header_is_present_once_with_its_value(
    send_and_receive: Callable[..., bytes], with_settings: Callable[..., Settings]
) -> None:
    with_settings(public_url="https://offers.example.com", mail_default_sender="Shop <offers@münze.example>")
    shop_actions.save_shop(
        ShopValues("Blumen Müller", sender_name="Blumen, Müller", reply_to="laden@bücher.example"), "tests"
    )
    raw = send_and_receive(build_customer("Ada", "Ada.L@example.com"))
    message = parse_message(raw)
    assert [str(message[name]) for name in ("To", "Precedence", "Auto-Submitted", "X-Campaign-Id", "MIME-Version")] == [
        "Ada <Ada.L@example.com>",
        "bulk",
        "auto-generated",
        "3",
        "1.0",
    ]
    assert (message["From"].addresses[0].display_name, message["From"].addresses[0].addr_spec) == (
        "Blumen, Müller",
        "offers@xn--mnze-0ra.example",
    )
    assert message["Reply-To"].addresses[0].addr_spec == "laden@xn--bcher-kva.example"
    assert message["Message-ID"] == campaign_tokens.build_message_id(3, 7, "xn--mnze-0ra.example")
    assert message["List-Id"].endswith("<offers.xn--mnze-0ra.example>")
    assert message["Feedback-ID"] == "3:1:mailing:onecode"
    url = campaign_tokens.build_unsubscribe_url(7, 3)
    assert url.startswith("https://offers.example.com/u/")
    assert message["List-Unsubscribe"] == f"<{url}>, <mailto:offers@xn--mnze-0ra.example?subject=unsubscribe>"
    assert message["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    assert abs(message["Date"].datetime - datetime.now(UTC)) < timedelta(minutes=5)
    names = [line.partition(b":")[0] for line in re.split(rb"\r\n(?![ \t])", raw.partition(b"\r\n\r\n")[0])]
    assert len(names) == len(set(names))
    assert {part.get_content_charset() for part in message.iter_parts()} == {"utf-8"}


def test_there_is_no_reply_to_header_without_a_reply_address(render: Callable[..., EmailMessage]) -> None:
    assert render()["Reply-To"] is None


def test_the_footer_contains_reason_unsubscribe_link_and_address(render: Callable[..., EmailMessage]) -> None:
    values = ShopValues(
        "Laden", reason="Weil <Sie> Kunde sind.", unsubscribe_words="Schluss", address="Am Markt 1\nOrt"
    )
    shop_actions.save_shop(values, "tests")
    for message in (render(), render(values={"code": "OTHER"}, html="<p>Hallo</p>", text="Hallo")):
        assert "Weil <Sie> Kunde sind.\nSchluss: http://localhost/u/" in body(message, "plain")
        assert body(message, "plain").rstrip().endswith("Am Markt 1\nOrt")
        html = body(message, "html")
        assert all(part in html for part in ("Weil &lt;Sie&gt; Kunde sind.", ">Schluss</a>", "Am Markt 1", "Ort"))


# --- the shop design ----------------------------------------------------------------------------------


def test_the_design_shows_name_and_colour_without_external_resources(render: Callable[..., EmailMessage]) -> None:
    shop_actions.save_shop(
        ShopValues("Laden <3", colour="#b400ff", button_words="Los", link_words="Oder hier:"), "tests"
    )
    html = body(render(), "html")
    assert "Laden &lt;3" in html
    assert html.count("#b400ff") >= 2
    assert ">Los</a>" in html
    assert "Oder hier:" in html
    assert not re.search(r"<img|<link|url\(|@import|src=", html)


def test_css_rules_are_inlined_except_media_queries(render: Callable[..., EmailMessage]) -> None:
    html = body(render(), "html")
    style_sheet = "".join(re.findall(r"(?s)<style.*?</style>", html))
    assert "prefers-color-scheme: dark" in style_sheet
    assert "max-width: 620px" in style_sheet
    assert "dashed" not in style_sheet
    assert re.search(r'<td class="code"[^>]*style="[^"]*dashed', html)


def test_the_design_is_small(app: Flask, make_offer: Callable[..., Offer]) -> None:
    raw = MailMerge(EmailContent(), make_offer("x" * 40), 3).build_message(build_customer("李" * 60)).raw
    assert len(raw) < 20_000


def test_the_preheader_contains_the_first_sentence(render: Callable[..., EmailMessage]) -> None:
    html = body(render(), "html")
    preheader = re.search(r'<div class="preheader"[^>]*>([^<\u2007]*)', html)
    assert preheader is not None
    assert preheader[1] == "Summer is here, and it comes with a discount for you:"


def test_the_outlook_button_has_the_same_link(render: Callable[..., EmailMessage]) -> None:
    html = body(render(), "html")
    assert f'<v:roundrect href="{personal_links.build_personal_url(1, 7)}"' in html
    assert html.count("<!--[if mso]>") == 1


@pytest.mark.parametrize("is_personal", [False, True])
def test_a_long_code_is_rendered_smaller(render: Callable[..., EmailMessage], is_personal: bool) -> None:
    suffix_length = 1 + personal_codes.SUFFIX_LENGTH if is_personal else 0
    longest = "A" * (design.LONG_CODE_LENGTH - suffix_length)

    for code, is_small in ((longest, False), (longest + "A", True)):
        html = body(render(values={"code": code, "personal_code_required": is_personal}), "html")
        assert ('class="code long"' in html) == is_small


# --- previews -------------------------------------------------------------------------------------


def test_the_preview_equals_the_sent_email_except_personal_values(
    app: Flask, relay: Relay, make_offer: Callable[..., Offer], make_customer: Callable[..., Customer]
) -> None:
    offer, ada = make_offer(personal_code_required=True), make_customer(locale="de")
    merge = MailMerge(EmailContent(subject="{{ offer.code }} for {{ customer.name }}"), offer, 3)
    shown = merge.preview(ada)
    with smtp.create_relay_connection() as connection:
        connection.send(merge.build_message(ada))
    preview_values = {
        personal_links.build_personal_url(offer.id, ada.id): personal_links.build_personal_url(
            offer.id, PREVIEW_CUSTOMER_ID
        ),
        campaign_tokens.build_unsubscribe_url(ada.id, 3): campaign_tokens.build_unsubscribe_url(PREVIEW_CUSTOMER_ID, 3),
        personal_codes.derive_personal_code("SUMMER25", offer.id, ada.id): personal_codes.derive_personal_code(
            "SUMMER25", offer.id, PREVIEW_CUSTOMER_ID
        ),
    }

    def with_preview_values(content: str) -> str:
        for personal, preview in preview_values.items():
            content = content.replace(personal, preview)
        return content

    sent = relay.message_to("ada@example.com")
    assert with_preview_values(str(sent.message["Subject"])) == shown.subject
    assert with_preview_values(sent.text.replace("\r\n", "\n")) == shown.text
    assert with_preview_values(sent.html.replace("\r\n", "\n")) == shown.html
    assert all(personal not in f"{shown.subject}{shown.text}{shown.html}{shown.headers}" for personal in preview_values)
    for line in ("Precedence: bulk", "To: Ada Lovelace <ada@example.com>", "X-Campaign-Id: 3"):
        assert line in shown.headers


def test_preview_links_open_preview_pages_and_redeem_nothing(
    client: FlaskClient, make_offer: Callable[..., Offer], make_customer: Callable[..., Customer]
) -> None:
    offer, ada = make_offer(), make_customer()
    shown = MailMerge(EmailContent(), offer, 3).preview(ada)
    link, unsubscribe_link = (re.search(pattern, shown.text) for pattern in (r"/r/[\w.-]+", r"/u/[\w.-]+"))
    assert link is not None
    assert unsubscribe_link is not None
    for response in (client.get(link[0]), client.post(link[0])):
        assert response.status_code == 200
        assert "Preview of a personal link" in response.text.replace("&#39;", "'")
        assert "<button" not in response.text
    for response in (client.get(unsubscribe_link[0]), client.post(unsubscribe_link[0])):
        assert response.status_code == 200
        assert "Customers unsubscribe on this page" in response.text
    assert db.session.execute(text("select count(*) from redemption")).scalar() == 0


def test_link_builders_build_the_same_links_as_single_calls(app: Flask) -> None:
    build_personal_url, build_unsubscribe_url = (
        personal_links.create_personal_url_builder(5),
        campaign_tokens.create_unsubscribe_url_builder(3),
    )
    for number in (0, 7, 2**40):
        assert build_personal_url(number) == personal_links.build_personal_url(5, number)
        assert build_unsubscribe_url(number) == campaign_tokens.build_unsubscribe_url(number, 3)
        assert personal_links.parse_personal_token(build_personal_url(number).rpartition("/")[2]) == (5, number)


def test_an_invalid_address_builds_no_message(app: Flask, make_offer: Callable[..., Offer]) -> None:
    merge = MailMerge(EmailContent(), make_offer(), 3)
    for address in (
        "no-at-sign",
        "a b@example.com",
        "a@b@example.com",
        "ada@example",
        "ada@exa mple.com",
        "a\r\nb@example.com",
    ):
        with pytest.raises(ValueError, match="is not a valid email address"):
            merge.build_message(Customer(id=7, email=address, email_as_given=address, name="Ada"))


def _offer(ends: datetime | None = None) -> Offer:
    return Offer(
        id=1,
        code="SUMMER25",
        code_as_written="SUMMER25",
        name="Summer",
        discount_type="amount",
        amount=5,
        currency="EUR",
        time_zone="UTC",
        personal_code_required=False,
        ends_at=ends,
    )


def _lines(payload: object) -> str:
    assert isinstance(payload, bytes)
    return payload.decode().replace("\r\n", "\n").rstrip("\n")


# --- text direction ---------------------------------------------------------------------------------


def test_a_right_to_left_value_is_isolated_in_left_to_right_text(render: Callable[..., EmailMessage]) -> None:
    ends = {"ends_at": datetime(2027, 1, 1, tzinfo=UTC)}
    page = '<a title="{{ customer.name }}" href="mailto:{{ customer.email }}">{{ customer.name }}</a> {{ offer.ends }}.'
    content = "Hello {{ customer.name }}, good until {{ offer.ends }}. {{ link }}"
    message = render(
        to=build_customer("آدا", locale="ar-EG"),
        values=ends,
        subject="{{ customer.name }}: hello",
        text=content,
        html=page,
    )
    assert message["Subject"] == "\u2068آدا\u2069: hello"
    assert body(message, "plain").startswith("Hello \u2068آدا\u2069, good until \u2068٣١ ديسمبر ٢٠٢٦\u2069. http")
    html = body(message, "html")
    assert 'title="آدا"' in html
    assert "<bdi>آدا</bdi></a> <bdi>٣١ ديسمبر ٢٠٢٦</bdi>." in html


def test_a_left_to_right_value_is_isolated_in_right_to_left_text(render: Callable[..., EmailMessage]) -> None:
    message = render(
        to=build_customer("Ada"), subject="שלום {{ customer.name }}!", text="שלום {{ customer.name }}: {{ link }}"
    )
    assert message["Subject"] == "שלום \u2068Ada\u2069!"
    assert body(message, "plain").startswith("שלום \u2068Ada\u2069: http")
    assert "<bdi>Ada</bdi>" in body(message, "html")


def test_a_value_of_the_same_direction_is_not_isolated(render: Callable[..., EmailMessage]) -> None:
    message = render(to=build_customer("Zoë"), subject="Hi {{ customer.name }}", text="Hi {{ customer.name }}")
    assert message["Subject"] == "Hi Zoë"
    assert not re.search("[\u2066-\u2069]|bdi", body(message, "plain") + body(message, "html"))


def test_the_html_title_contains_no_isolation_markup(render: Callable[..., EmailMessage]) -> None:
    message = render(to=build_customer("آدا"), subject="Hi {{ customer.name }}", text="Hi {{ customer.name }}")
    assert "<title>Hi آدا</title>" in body(message, "html")


def test_bidi_controls_in_a_name_are_removed(render: Callable[..., EmailMessage]) -> None:
    message = render(
        to=build_customer("Ada\u202e\u2066 ecaleb"), subject="Hi {{ customer.name }} 50%", text="{{ customer.name }}"
    )
    assert message["Subject"] == "Hi Ada ecaleb 50%"
    assert str(message["To"]).startswith("Ada ecaleb")
    assert "\u202e" not in body(message, "plain") + body(message, "html")
