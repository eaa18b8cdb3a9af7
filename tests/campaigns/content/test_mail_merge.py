"""What a campaign's mail looks like, from the bytes that go out."""

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


def person(
    name: str = "Ada Lovelace", address: str = "ada@example.com", number: int = 7, locale: str | None = None
) -> Customer:
    return Customer(id=number, email=normalise_email(address), email_as_given=address, name=name, locale=locale)


def parsed(raw: bytes) -> EmailMessage:
    return email.message_from_bytes(raw, policy=email.policy.default)


def body(mail: EmailMessage, kind: str) -> str:
    part = mail.get_body((kind,))
    assert part is not None
    return str(part.get_content())


@pytest.fixture
def write(app: Flask, make_offer: Callable[..., Offer]) -> Callable[..., EmailMessage]:
    """The parsed mail to a customer: `write(text="Hi {{ customer.name }}", to=person("Ada"))`."""

    def go(to: Customer | None = None, values: dict[str, Any] | None = None, **mail: str) -> EmailMessage:
        offer = make_offer(**(values or {}))
        return parsed(
            MailMerge(EmailContent(**mail), offer, 3).build_message(to or person()).raw.replace(b"\r\n", b"\n")
        )

    return go


def test_the_default_mail_has_code_link_end_and_unsubscribe_in_both_bodies(write: Callable[..., EmailMessage]) -> None:
    mail = write(values={"ends_at": datetime(2030, 6, 1, tzinfo=UTC)})
    for kind in ("plain", "html"):
        words = body(mail, kind)
        assert "SUMMER25" in words
        assert personal_links.build_personal_url(1, 7) in words
        assert campaign_tokens.build_unsubscribe_url(7, 3) in words
        assert "May 31, 2030" in words or "31 May 2030" in words
        assert "Ada Lovelace" in words


def test_the_default_subject_says_what_it_is(write: Callable[..., EmailMessage]) -> None:
    assert write()["Subject"] == "25% off for you: Summer"


def test_text_and_html_are_alternatives(write: Callable[..., EmailMessage]) -> None:
    mail = write()
    assert mail.get_content_type() == "multipart/alternative"
    assert [part.get_content_type() for part in mail.iter_parts()] == ["text/plain", "text/html"]


def test_an_offer_without_end_reads_well(write: Callable[..., EmailMessage]) -> None:
    assert "It is valid until further notice." in body(write(values={"ends_at": None}), "plain")


def test_a_customer_without_name_gets_the_words_that_stand_in(write: Callable[..., EmailMessage]) -> None:
    assert body(write(to=person("")), "plain").startswith("Hello there,")


def test_html_in_a_name_is_text(write: Callable[..., EmailMessage]) -> None:
    mail = write(to=person("<script>alert(1)</script>"), text="Hi {{ customer.name }}")
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in body(mail, "html")
    assert "<script>" not in body(mail, "html")
    assert "<script>alert(1)</script>" in body(mail, "plain")


def test_a_line_break_in_a_name_starts_no_header(write: Callable[..., EmailMessage]) -> None:
    mail = write(to=person("Ada\r\nBcc: eve@example.com\r\n\r\nBody"), subject="For {{ customer.name }}")
    assert mail["Bcc"] is None
    assert mail["Subject"] == "For Ada Bcc: eve@example.com Body"
    assert mail["To"].addresses[0].display_name == "Ada Bcc: eve@example.com Body"


@pytest.mark.parametrize(
    "name", ["Zoë 🎉👨‍👩‍👧", "עדה לאבלייס", "آدا لوفليس", "李" * 60, 'O"Hara \\ Co', "Lovelace, Ada", "a=?b", "ß" * 90]
)
def test_every_name_arrives_as_it_is(write: Callable[..., EmailMessage], name: str) -> None:
    mail = write(to=person(name), subject="For {{ customer.name }}", text="Dear {{ customer.name }}, hello")
    # Python's newer parser puts a space between the encoded words of a long name.
    assert mail["To"].addresses[0].display_name.replace(" ", "") == name.replace(" ", "")
    assert mail["Subject"] == f"For {kept_apart(name, 'For')}"
    assert body(mail, "plain").startswith(f"Dear {kept_apart(name, 'Dear')}, hello")


def test_placeholders_in_a_name_are_not_carried_out(write: Callable[..., EmailMessage]) -> None:
    assert "{{ offer.code }}" in body(write(to=person("{{ offer.code }}"), text="Hi {{ customer.name }}"), "plain")


def test_a_text_alone_gets_html_in_the_shops_design(write: Callable[..., EmailMessage]) -> None:
    html = body(write(text="One <b>\n\n{{ offer.code }}\n\n{{ link }}\n\nSee https://example.com/a?b=1&c=2."), "html")
    assert "One &lt;b&gt;" in html
    assert 'href="https://example.com/a?b=1&amp;c=2"' in html
    assert "Redeem now</a>" in html
    assert "Test shop" in html


def test_html_alone_gets_a_text(write: Callable[..., EmailMessage]) -> None:
    html = '<style>p{color:red}</style><h1>Hi {{ customer.name }}</h1><p>Your <a href="{{ link }}">page</a></p>'
    mail = write(html=html)
    text = body(mail, "plain")
    assert text.startswith(f"Hi Ada Lovelace\n\nYour page: {personal_links.build_personal_url(1, 7)}")
    assert "color" not in text
    assert 'style="color: red;"' in body(mail, "html")


def test_staffs_own_html_gets_a_way_to_unsubscribe(write: Callable[..., EmailMessage]) -> None:
    mail = write(html="<html><body><p>Hello</p></body></html>", text="Hello")
    assert all(campaign_tokens.build_unsubscribe_url(7, 3) in body(mail, kind) for kind in ("plain", "html"))


def test_staffs_own_way_to_unsubscribe_is_the_only_one(write: Callable[..., EmailMessage]) -> None:
    mail = write(html='<a href="{{ unsubscribe }}">bye</a>', text="bye: {{ unsubscribe }}")
    assert [body(mail, kind).count("/u/") for kind in ("plain", "html")] == [1, 1]


def test_an_offer_with_personal_codes_mails_each_their_own(write: Callable[..., EmailMessage]) -> None:
    mail = write(values={"personal_code_required": True}, text="Code {{ offer.code }}")
    assert f"Code {personal_codes.derive_personal_code('SUMMER25', 1, 7)}" in body(mail, "plain")


def test_the_discount_is_written_as_money(write: Callable[..., EmailMessage]) -> None:
    values = {"discount_type": "amount", "amount": 500, "currency": "EUR"}
    assert write(values=values, subject="{{ offer.discount }}")["Subject"] == "€5.00"


def test_the_headers_are_those_of_a_mailing(write: Callable[..., EmailMessage]) -> None:
    mail = write()
    assert mail["From"].addresses[0].addr_spec == "offers@example.com"
    assert mail["To"].addresses[0].addr_spec == "ada@example.com"
    assert mail["Precedence"] == "bulk"
    assert mail["Auto-Submitted"] == "auto-generated"
    assert mail["List-Id"] == "Test shop <offers.example.com>"
    assert mail["X-Campaign-Id"] == "3"
    assert mail["Date"].datetime.tzinfo is not None
    assert len(mail.get_all("Message-ID") or []) == 1


def test_the_message_id_is_the_same_for_each_try_and_names_no_host(write: Callable[..., EmailMessage]) -> None:
    first = write()["Message-ID"]
    assert (
        first
        == campaign_tokens.build_message_id(3, 7, "example.com")
        != campaign_tokens.build_message_id(3, 8, "example.com")
    )
    assert first.endswith("@example.com>")


def test_unsubscribing_by_one_click_needs_https(
    app: Flask, make_offer: Callable[..., Offer], with_settings: Callable[..., Settings]
) -> None:
    offer = make_offer()
    plain = parsed(MailMerge(EmailContent(), offer, 3).build_message(person()).raw)
    with_settings(public_url="https://offers.example.com")
    secure = parsed(MailMerge(EmailContent(), offer, 3).build_message(person()).raw)
    assert plain["List-Unsubscribe-Post"] is None
    assert secure["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"


def test_a_long_list_unsubscribe_is_never_encoded(
    app: Flask, make_offer: Callable[..., Offer], with_settings: Callable[..., Settings]
) -> None:
    with_settings(public_url="https://" + "a" * 60 + ".example.com/" + "b" * 200)
    raw = MailMerge(EmailContent(), make_offer(), 3).build_message(person()).raw
    assert b"=?" not in raw.partition(b"\r\n\r\n")[0]
    assert f"<{campaign_tokens.build_unsubscribe_url(7, 3)}>" in parsed(raw)["List-Unsubscribe"]


def test_the_envelope_has_the_domain_of_idna_2008_and_the_name_as_given(app: Flask) -> None:
    assert addresses.recipient_address(person(address="Ada.L@faß.de")) == "Ada.L@xn--fa-hia.de"


def test_a_header_refuses_a_line_break() -> None:
    with pytest.raises(ValueError, match="line break"):
        mail_headers.format_header("Subject", "a\nb")


def test_a_sender_with_a_line_break_is_refused(
    app: Flask, make_offer: Callable[..., Offer], with_settings: Callable[..., Settings]
) -> None:
    with_settings(mail_default_sender="Shop\r\nBcc: x <a@example.com>")
    offer = make_offer()
    with pytest.raises(ValueError, match="line break"):
        MailMerge(EmailContent(), offer, 3)


TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc", "Co"), include_characters="\n\t"), max_size=300)
PLAIN = TEXT.map(lambda words: words.replace("{", "("))
LOCALES = ("de", "fr-CH", "ar-EG", "he", "hi-Deva-IN", "en-US", "xx", "de_de_de_de", None)


TURNING = ("LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI")
FROM_THE_RIGHT = ("R", "AL", "AN")


def kept_apart(value: str, words: str) -> str:
    """What the standard library's tables say of directions, in place of ours."""
    strong = [b for c in words if (b := unicodedata.bidirectional(c)) in ("L", "R", "AL")]
    base_is_right = bool(strong) and strong[0] != "L"
    ways = {unicodedata.bidirectional(c) for c in value}
    runs_otherwise = "L" in ways if base_is_right else bool(ways & set(FROM_THE_RIGHT))
    return f"\u2068{value}\u2069" if runs_otherwise else value


@given(name=TEXT, before=PLAIN, after=PLAIN, locale=st.sampled_from(LOCALES))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_fast_way_says_the_same_as_the_slow_way(
    session_app: Flask, name: str, before: str, after: str, locale: str | None
) -> None:
    """The slow way is the standard library's: it fills the text first and then serialises all of it."""
    source = before + "{{ customer.name }}" + after + "{{ offer.ends }}{{ customer.name or 'x' }}{{ customer.name }}"
    subject = "{{ offer.discount }} {{ customer.name }}"
    with session_app.app_context():
        ends = datetime(2030, 6, 1, tzinfo=UTC)
        form = MailMerge(
            EmailContent(subject, source + "{{ unsubscribe }}", "<p>{{ unsubscribe }}</p>"), _offer(ends), 3
        )
        raw = form.build_message(person(name, number=7, locale=locale)).raw
        unsubscribe = campaign_tokens.build_unsubscribe_url(7, 3)
    known = locales.resolve_locale(locale, "en")
    line = " ".join("".join(" " if unicodedata.category(c) in ("Zl", "Zp") else c for c in name).split())
    line = "".join(c for c in line if unicodedata.bidirectional(c) not in TURNING)
    day = formatting.format_last_day(ends, "UTC", known)
    slow = EmailMessage(policy=email.policy.SMTP)
    shown, ends_on = (kept_apart(value, before + after) for value in (line, day))
    words = f"{before}{shown}{after}{ends_on}{shown or 'x'}{shown}{unsubscribe}"
    slow.set_content(words.replace("\r\n", "\n").replace("\r", "\n"), cte="quoted-printable")
    mail = parsed(raw)
    fast = mail.get_body(("plain",))
    assert fast is not None
    assert _lines(fast.get_payload(decode=True)) == _lines(slow.get_payload(decode=True))
    amount = formatting.format_money(5, "EUR", known)
    shown, amount = (kept_apart(value, before + after) for value in (line, amount))
    assert mail["Subject"] == " ".join(f"{amount} {shown}".split())
    _assert_is_in_order(raw)


def _assert_is_in_order(raw: bytes) -> None:
    """No bare CR or LF, no line behind 998 octets in the head (RFC 5322, 2.1.1) or 76 in the bodies (RFC 2045, 6.7)."""
    bare = raw.replace(b"\r\n", b"")
    assert b"\n" not in bare
    assert b"\r" not in bare
    head = raw.partition(b"\r\n\r\n")[0]
    assert head.isascii()
    assert max(map(len, head.split(b"\r\n"))) <= 998
    # Every header but the addresses of RFC 2369 fits into what a line should have.
    assert all(len(line) <= 78 for line in head.split(b"\r\n") if b"http" not in line and b"mailto" not in line)
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
def test_percent_and_dates_are_written_as_the_recipient_writes_them(
    write: Callable[..., EmailMessage], locale: str | None, subject: str, ends: str
) -> None:
    values = {"percent": Decimal("12.5"), "ends_at": datetime(2030, 6, 1, tzinfo=UTC)}
    mail = write(to=person(locale=locale), values=values, subject="{{ offer.discount }} off")
    assert mail["Subject"] == subject
    assert all(ends in body(mail, kind) for kind in ("plain", "html"))


@pytest.mark.parametrize(
    ("locale", "words"), [("de", "1.234,50\xa0€"), ("en", "€1,234.50"), ("ar-EG", "\u200f١٬٢٣٤٫٥٠\xa0€")]
)
def test_money_is_written_as_the_recipient_writes_it(
    write: Callable[..., EmailMessage], locale: str, words: str
) -> None:
    values = {"discount_type": "amount", "amount": 123450, "currency": "EUR"}
    assert words in body(write(to=person(locale=locale), values=values, text="{{ offer.discount }}"), "plain")


def test_who_has_no_language_that_is_known_reads_the_shops(write: Callable[..., EmailMessage]) -> None:
    shop_actions.save_shop(ShopValues("Laden", locale="de"), "tests")
    assert write(to=person(locale="xx"), subject="{{ offer.discount }}")["Subject"] == "25 %"


def test_each_language_is_written_once(app: Flask, make_offer: Callable[..., Offer]) -> None:
    form = MailMerge(EmailContent(), make_offer(), 3)
    for number in range(20):
        for locale in LOCALES:
            form.build_message(person(number=number + 1, locale=locale))
    assert len(form._messages_by_values) <= len({locales.resolve_locale(tag, "en") for tag in LOCALES})


def test_an_offer_without_end_has_the_writers_own_words_for_it(write: Callable[..., EmailMessage]) -> None:
    mail = write(values={"ends_at": None}, text='Bis {{ offer.ends or "auf weiteres" }}.')
    assert body(mail, "plain").startswith("Bis auf weiteres.")


# --- the bytes that a relay receives ----------------------------------------------------------------


@pytest.fixture
def send_and_receive(app: Flask, relay: Relay, make_offer: Callable[..., Offer]) -> Callable[..., bytes]:
    """Send an email to a customer; return the bytes that the relay received."""

    def go(to: Customer, **mail: str) -> bytes:
        letter = MailMerge(EmailContent(**mail), make_offer(), 3).build_message(to)
        with smtp.create_relay_connection() as connection:
            connection.send(letter)
        return relay.messages[-1].raw

    return go


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
def test_what_a_relay_receives_is_in_order(send_and_receive: Callable[..., bytes], name: str) -> None:
    raw = send_and_receive(
        person(name), subject="For {{ customer.name }} and " + "a long subject " * 9, text=f"{name}\n.\n{name * 20}"
    )
    _assert_is_in_order(raw)
    mail = parsed(raw)
    plain = " ".join(name.split()).replace("\u202e", "")
    shown = kept_apart(plain, "For")
    assert mail["Subject"] == " ".join(f"For {shown} and {'a long subject ' * 9}".split())
    assert mail["To"].addresses[0].display_name.replace(" ", "") == plain.replace(" ", "")
    assert mail["Bcc"] is None
    assert not mail.defects


def test_all_headers_of_a_mailing_are_there_once_and_mean_what_they_say(
    send_and_receive: Callable[..., bytes], with_settings: Callable[..., Settings]
) -> None:
    with_settings(public_url="https://offers.example.com", mail_default_sender="Shop <offers@münze.example>")
    shop_actions.save_shop(
        ShopValues("Blumen Müller", sender_name="Blumen, Müller", reply_to="laden@bücher.example"), "tests"
    )
    raw = send_and_receive(person("Ada", "Ada.L@example.com"))
    mail = parsed(raw)
    assert [str(mail[name]) for name in ("To", "Precedence", "Auto-Submitted", "X-Campaign-Id", "MIME-Version")] == [
        "Ada <Ada.L@example.com>",
        "bulk",
        "auto-generated",
        "3",
        "1.0",
    ]
    assert (mail["From"].addresses[0].display_name, mail["From"].addresses[0].addr_spec) == (
        "Blumen, Müller",
        "offers@xn--mnze-0ra.example",
    )
    assert mail["Reply-To"].addresses[0].addr_spec == "laden@xn--bcher-kva.example"
    assert mail["Message-ID"] == campaign_tokens.build_message_id(3, 7, "xn--mnze-0ra.example")
    assert mail["List-Id"].endswith("<offers.xn--mnze-0ra.example>")
    assert mail["Feedback-ID"] == "3:1:mailing:onecode"
    url = campaign_tokens.build_unsubscribe_url(7, 3)
    assert url.startswith("https://offers.example.com/u/")
    assert mail["List-Unsubscribe"] == f"<{url}>, <mailto:offers@xn--mnze-0ra.example?subject=unsubscribe>"
    assert mail["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    assert abs(mail["Date"].datetime - datetime.now(UTC)) < timedelta(minutes=5)
    names = [line.partition(b":")[0] for line in re.split(rb"\r\n(?![ \t])", raw.partition(b"\r\n\r\n")[0])]
    assert len(names) == len(set(names))
    assert {part.get_content_charset() for part in mail.iter_parts()} == {"utf-8"}


def test_without_an_address_for_answers_there_is_no_such_header(write: Callable[..., EmailMessage]) -> None:
    assert write()["Reply-To"] is None


def test_the_foot_says_why_and_from_where(write: Callable[..., EmailMessage]) -> None:
    values = ShopValues(
        "Laden", reason="Weil <Sie> Kunde sind.", unsubscribe_words="Schluss", address="Am Markt 1\nOrt"
    )
    shop_actions.save_shop(values, "tests")
    for mail in (write(), write(values={"code": "OTHER"}, html="<p>Hallo</p>", text="Hallo")):
        assert "Weil <Sie> Kunde sind.\nSchluss: http://localhost/u/" in body(mail, "plain")
        assert body(mail, "plain").rstrip().endswith("Am Markt 1\nOrt")
        seen = body(mail, "html")
        assert all(words in seen for words in ("Weil &lt;Sie&gt; Kunde sind.", ">Schluss</a>", "Am Markt 1", "Ort"))


# --- the shop's design --------------------------------------------------------------------------------


def test_the_design_has_the_shops_name_and_colour_and_fetches_nothing(write: Callable[..., EmailMessage]) -> None:
    shop_actions.save_shop(
        ShopValues("Laden <3", colour="#b400ff", button_words="Los", link_words="Oder hier:"), "tests"
    )
    seen = body(write(), "html")
    assert "Laden &lt;3" in seen
    assert seen.count("#b400ff") >= 2
    assert ">Los</a>" in seen
    assert "Oder hier:" in seen
    assert not re.search(r"<img|<link|url\(|@import|src=", seen)


def test_the_rules_are_at_the_elements_and_only_the_media_queries_stay(write: Callable[..., EmailMessage]) -> None:
    seen = body(write(), "html")
    sheet = "".join(re.findall(r"(?s)<style.*?</style>", seen))
    assert "prefers-color-scheme: dark" in sheet
    assert "max-width: 620px" in sheet
    assert "dashed" not in sheet
    assert re.search(r'<td class="code"[^>]*style="[^"]*dashed', seen)


def test_the_design_is_small(app: Flask, make_offer: Callable[..., Offer]) -> None:
    raw = MailMerge(EmailContent(), make_offer("x" * 40), 3).build_message(person("李" * 60)).raw
    assert len(raw) < 20_000


def test_a_mailbox_shows_the_first_words_beside_the_subject(write: Callable[..., EmailMessage]) -> None:
    seen = body(write(), "html")
    preheader = re.search(r'<div class="preheader"[^>]*>([^<\u2007]*)', seen)
    assert preheader is not None
    assert preheader[1] == "Summer is here, and it comes with a discount for you:"


def test_outlook_draws_the_button_with_the_same_address(write: Callable[..., EmailMessage]) -> None:
    seen = body(write(), "html")
    assert f'<v:roundrect href="{personal_links.build_personal_url(1, 7)}"' in seen
    assert seen.count("<!--[if mso]>") == 1


def test_a_long_code_is_written_smaller(write: Callable[..., EmailMessage]) -> None:
    assert 'class="code long"' in body(write(values={"code": "ABCDEFGHIJ-1234567890-ABC"}), "html")


# --- the preview is the mail ----------------------------------------------------------------------


def test_the_preview_is_what_is_sent_but_for_what_is_the_recipients_own(
    app: Flask, relay: Relay, make_offer: Callable[..., Offer], make_customer: Callable[..., Customer]
) -> None:
    offer, ada = make_offer(personal_code_required=True), make_customer(locale="de")
    form = MailMerge(EmailContent(subject="{{ offer.code }} for {{ customer.name }}"), offer, 3)
    shown = form.preview(ada)
    with smtp.create_relay_connection() as connection:
        connection.send(form.build_message(ada))
    own = {
        personal_links.build_personal_url(offer.id, ada.id): personal_links.build_personal_url(
            offer.id, PREVIEW_CUSTOMER_ID
        ),
        campaign_tokens.build_unsubscribe_url(ada.id, 3): campaign_tokens.build_unsubscribe_url(PREVIEW_CUSTOMER_ID, 3),
        personal_codes.derive_personal_code("SUMMER25", offer.id, ada.id): personal_codes.derive_personal_code(
            "SUMMER25", offer.id, PREVIEW_CUSTOMER_ID
        ),
    }

    def nobodys(words: str) -> str:
        for mine, theirs in own.items():
            words = words.replace(mine, theirs)
        return words

    sent = relay.message_to("ada@example.com")
    assert nobodys(str(sent.message["Subject"])) == shown.subject
    assert nobodys(sent.text.replace("\r\n", "\n")) == shown.text
    assert nobodys(sent.html.replace("\r\n", "\n")) == shown.html
    assert all(mine not in f"{shown.subject}{shown.text}{shown.html}{shown.headers}" for mine in own)
    for line in ("Precedence: bulk", "To: Ada Lovelace <ada@example.com>", "X-Campaign-Id: 3"):
        assert line in shown.headers


def test_links_of_a_preview_open_a_page_that_says_so_and_redeem_nothing(
    client: FlaskClient, make_offer: Callable[..., Offer], make_customer: Callable[..., Customer]
) -> None:
    offer, ada = make_offer(), make_customer()
    shown = MailMerge(EmailContent(), offer, 3).preview(ada)
    link, out = (re.search(pattern, shown.text) for pattern in (r"/r/[\w.-]+", r"/u/[\w.-]+"))
    assert link is not None
    assert out is not None
    for answer in (client.get(link[0]), client.post(link[0])):
        assert answer.status_code == 200
        assert "Preview of a customer's personal page" in answer.text.replace("&#39;", "'")
        assert "<button" not in answer.text
    for answer in (client.get(out[0]), client.post(out[0])):
        assert answer.status_code == 200
        assert "Customers unsubscribe on this page" in answer.text
    assert db.session.execute(text("select count(*) from redemption")).scalar() == 0


def test_many_links_are_signed_as_one_is(app: Flask) -> None:
    urls, outs = personal_links.make_personal_url_builder(5), campaign_tokens.unsubscribe_url_builder(3)
    for number in (0, 7, 2**40):
        assert urls(number) == personal_links.build_personal_url(5, number)
        assert outs(number) == campaign_tokens.build_unsubscribe_url(number, 3)
        assert personal_links.parse_personal_token(urls(number).rpartition("/")[2]) == (5, number)


def test_an_address_that_is_none_is_no_letter(app: Flask, make_offer: Callable[..., Offer]) -> None:
    form = MailMerge(EmailContent(), make_offer(), 3)
    for odd in (
        "no-at-sign",
        "a b@example.com",
        "a@b@example.com",
        "ada@example",
        "ada@exa mple.com",
        "a\r\nb@example.com",
    ):
        with pytest.raises(ValueError, match="is not a valid email address"):
            form.build_message(Customer(id=7, email=odd, email_as_given=odd, name="Ada"))


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


# --- values that run the other way ------------------------------------------------------------------


def test_a_value_from_right_to_left_does_not_turn_the_words_round(write: Callable[..., EmailMessage]) -> None:
    ends = {"ends_at": datetime(2027, 1, 1, tzinfo=UTC)}
    page = '<a title="{{ customer.name }}" href="mailto:{{ customer.email }}">{{ customer.name }}</a> {{ offer.ends }}.'
    words = "Hello {{ customer.name }}, good until {{ offer.ends }}. {{ link }}"
    mail = write(
        to=person("آدا", locale="ar-EG"), values=ends, subject="{{ customer.name }}: hello", text=words, html=page
    )
    assert mail["Subject"] == "\u2068آدا\u2069: hello"
    assert body(mail, "plain").startswith("Hello \u2068آدا\u2069, good until \u2068٣١ ديسمبر ٢٠٢٦\u2069. http")
    html = body(mail, "html")
    assert 'title="آدا"' in html
    assert "<bdi>آدا</bdi></a> <bdi>٣١ ديسمبر ٢٠٢٦</bdi>." in html


def test_a_value_from_left_to_right_in_words_from_the_right_is_kept_apart(write: Callable[..., EmailMessage]) -> None:
    mail = write(to=person("Ada"), subject="שלום {{ customer.name }}!", text="שלום {{ customer.name }}: {{ link }}")
    assert mail["Subject"] == "שלום \u2068Ada\u2069!"
    assert body(mail, "plain").startswith("שלום \u2068Ada\u2069: http")
    assert "<bdi>Ada</bdi>" in body(mail, "html")


def test_where_all_runs_one_way_nothing_is_put_round_it(write: Callable[..., EmailMessage]) -> None:
    mail = write(to=person("Zoë"), subject="Hi {{ customer.name }}", text="Hi {{ customer.name }}")
    assert mail["Subject"] == "Hi Zoë"
    assert not re.search("[\u2066-\u2069]|bdi", body(mail, "plain") + body(mail, "html"))


def test_a_title_holds_no_markup_of_ours(write: Callable[..., EmailMessage]) -> None:
    mail = write(to=person("آدا"), subject="Hi {{ customer.name }}", text="Hi {{ customer.name }}")
    assert "<title>Hi آدا</title>" in body(mail, "html")


def test_a_name_turns_nothing_round(write: Callable[..., EmailMessage]) -> None:
    mail = write(to=person("Ada\u202e\u2066 ecaleb"), subject="Hi {{ customer.name }} 50%", text="{{ customer.name }}")
    assert mail["Subject"] == "Hi Ada ecaleb 50%"
    assert str(mail["To"]).startswith("Ada ecaleb")
    assert "\u202e" not in body(mail, "plain") + body(mail, "html")
