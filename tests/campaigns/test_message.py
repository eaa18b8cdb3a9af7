"""What a campaign's mail looks like, from the bytes that go out."""

from __future__ import annotations

import email
import email.policy
from collections.abc import Callable
from datetime import UTC, datetime
from email.message import EmailMessage
from typing import Any

import pytest
from flask import Flask
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from webapp.campaigns import links, message
from webapp.campaigns.message import NOBODY, FormLetter
from webapp.campaigns.wording import MailText
from webapp.customers.models import Customer, normalise_email
from webapp.offers.models import Offer
from webapp.redemptions import links as personal_links
from webapp.redemptions import personal
from webapp.settings import Settings


def person(name: str = "Ada Lovelace", address: str = "ada@example.com", number: int = 7) -> Customer:
    return Customer(id=number, email=normalise_email(address), email_as_given=address, name=name)


def parsed(raw: bytes) -> EmailMessage:
    return email.message_from_bytes(raw, policy=email.policy.default)


def body(mail: EmailMessage, kind: str) -> str:
    part = mail.get_body((kind,))
    assert part is not None
    return str(part.get_content())


@pytest.fixture
def write(app: Flask, offer: Callable[..., Offer]) -> Callable[..., EmailMessage]:
    """The parsed mail to a customer: `write(text="Hi {{ customer.name }}", to=person("Ada"))`."""

    def go(to: Customer | None = None, values: dict[str, Any] | None = None, **mail: str) -> EmailMessage:
        row = offer(**(values or {}))
        return parsed(FormLetter(MailText(**mail), row, 3).letter(to or person()).raw.replace(b"\r\n", b"\n"))

    return go


def test_the_default_mail_has_code_link_end_and_unsubscribe_in_both_bodies(write: Callable[..., EmailMessage]) -> None:
    mail = write(values={"ends_at": datetime(2030, 6, 1, tzinfo=UTC)})
    for kind in ("plain", "html"):
        words = body(mail, kind)
        assert "SUMMER25" in words
        assert personal_links.personal_url(1, 7) in words
        assert links.unsubscribe_url(7, 3) in words
        assert "May 31, 2030" in words or "31 May 2030" in words
        assert "Ada Lovelace" in words


def test_the_default_subject_says_what_it_is(write: Callable[..., EmailMessage]) -> None:
    assert write()["Subject"] == "25% off for you: Summer"


def test_text_and_html_are_alternatives(write: Callable[..., EmailMessage]) -> None:
    mail = write()
    assert mail.get_content_type() == "multipart/alternative"
    assert [part.get_content_type() for part in mail.iter_parts()] == ["text/plain", "text/html"]


def test_an_offer_without_end_reads_well(write: Callable[..., EmailMessage]) -> None:
    assert "It is good until further notice." in body(write(values={"ends_at": None}), "plain")


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
    assert mail["Subject"] == f"For {name}"
    assert body(mail, "plain").startswith(f"Dear {name}, hello")


def test_placeholders_in_a_name_are_not_carried_out(write: Callable[..., EmailMessage]) -> None:
    assert "{{ offer.code }}" in body(write(to=person("{{ offer.code }}"), text="Hi {{ customer.name }}"), "plain")


def test_a_text_alone_gets_html_in_the_shops_design(write: Callable[..., EmailMessage]) -> None:
    html = body(write(text="One <b>\n\n{{ offer.code }}\n\n{{ link }}\n\nSee https://example.com/a?b=1&c=2."), "html")
    assert "One &lt;b&gt;" in html
    assert 'href="https://example.com/a?b=1&amp;c=2"' in html
    assert "Use it now</a>" in html
    assert "Test shop" in html


def test_html_alone_gets_a_text(write: Callable[..., EmailMessage]) -> None:
    html = '<style>p{color:red}</style><h1>Hi {{ customer.name }}</h1><p>Your <a href="{{ link }}">page</a></p>'
    mail = write(html=html)
    text = body(mail, "plain")
    assert text.startswith(f"Hi Ada Lovelace\n\nYour page: {personal_links.personal_url(1, 7)}")
    assert "color" not in text
    assert 'style="color: red;"' in body(mail, "html")


def test_staffs_own_html_gets_a_way_to_unsubscribe(write: Callable[..., EmailMessage]) -> None:
    mail = write(html="<html><body><p>Hello</p></body></html>", text="Hello")
    assert all(links.unsubscribe_url(7, 3) in body(mail, kind) for kind in ("plain", "html"))


def test_staffs_own_way_to_unsubscribe_is_the_only_one(write: Callable[..., EmailMessage]) -> None:
    mail = write(html='<a href="{{ unsubscribe }}">bye</a>', text="bye: {{ unsubscribe }}")
    assert [body(mail, kind).count("/u/") for kind in ("plain", "html")] == [1, 1]


def test_an_offer_with_personal_codes_mails_each_their_own(write: Callable[..., EmailMessage]) -> None:
    mail = write(values={"personal_code_required": True}, text="Code {{ offer.code }}")
    assert f"Code {personal.code('SUMMER25', 1, 7)}" in body(mail, "plain")


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
    assert first == links.message_id(3, 7, "example.com") != links.message_id(3, 8, "example.com")
    assert first.endswith("@example.com>")


def test_unsubscribing_by_one_click_needs_https(
    app: Flask, offer: Callable[..., Offer], with_settings: Callable[..., Settings]
) -> None:
    row = offer()
    plain = parsed(FormLetter(MailText(), row, 3).letter(person()).raw)
    with_settings(public_url="https://offers.example.com")
    secure = parsed(FormLetter(MailText(), row, 3).letter(person()).raw)
    assert plain["List-Unsubscribe-Post"] is None
    assert secure["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"


def test_a_long_list_unsubscribe_is_never_encoded(
    app: Flask, offer: Callable[..., Offer], with_settings: Callable[..., Settings]
) -> None:
    with_settings(public_url="https://" + "a" * 60 + ".example.com/" + "b" * 200)
    raw = FormLetter(MailText(), offer(), 3).letter(person()).raw
    assert b"=?" not in raw.partition(b"\r\n\r\n")[0]
    assert f"<{links.unsubscribe_url(7, 3)}>" in parsed(raw)["List-Unsubscribe"]


def test_the_envelope_has_the_domain_of_idna_2008_and_the_name_as_given(app: Flask) -> None:
    assert message.address(person(address="Ada.L@faß.de")) == "Ada.L@xn--fa-hia.de"


def test_a_header_refuses_a_line_break() -> None:
    with pytest.raises(ValueError, match="line break"):
        message.header("Subject", "a\nb")


def test_a_sender_with_a_line_break_is_refused(
    app: Flask, offer: Callable[..., Offer], with_settings: Callable[..., Settings]
) -> None:
    with_settings(mail_default_sender="Shop\r\nBcc: x <a@example.com>")
    row = offer()
    with pytest.raises(ValueError, match="line break"):
        FormLetter(MailText(), row, 3)


TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc", "Co"), include_characters="\n\t"), max_size=300)
PLAIN = TEXT.map(lambda words: words.replace("{", "("))


@given(name=TEXT, before=PLAIN, after=PLAIN)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_fast_way_says_the_same_as_the_slow_way(session_app: Flask, name: str, before: str, after: str) -> None:
    """The slow way is the standard library's: it fills the text first and then serialises all of it."""
    source = before + "{{ customer.name }}" + after + "{{ customer.name or 'x' }}{{ customer.name }}"
    with session_app.app_context():
        form = FormLetter(MailText(subject="s", text=source, html="<p>{{ unsubscribe }}</p>"), _offer(), 3)
        # Nobody's letter, for the links of a preview are nobody's too.
        raw = form.letter(person(name, number=NOBODY)).raw
        shown = form.preview(person(name, number=NOBODY))
    slow = EmailMessage(policy=email.policy.SMTP)
    slow.set_content(shown.text.replace("\r\n", "\n").replace("\r", "\n"), cte="quoted-printable")
    fast = parsed(raw).get_body(("plain",))
    assert fast is not None
    assert _lines(fast.get_payload(decode=True)) == _lines(slow.get_payload(decode=True))
    assert all(len(line) <= 76 for part in raw.split(b"--=_")[1:] for line in part.split(b"\r\n")[4:])
    assert b"\n" not in raw.replace(b"\r\n", b"")


def _offer() -> Offer:
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
        ends_at=None,
    )


def _lines(payload: object) -> str:
    assert isinstance(payload, bytes)
    return payload.decode().replace("\r\n", "\n").rstrip("\n")
