"""A campaign's mail: written out once, then stamped with each recipient's own words.

Building and serialising a MIME message costs about two milliseconds, so it is done once per campaign. Bodies are
quoted-printable with a soft line break (RFC 2045, 6.7) on both sides of each placeholder; a value then starts on a
line of its own, is encoded by itself, and the bytes are joined.
"""

from __future__ import annotations

import base64
import binascii
import html
import secrets
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime, parseaddr
from functools import partial

import idna
from flask import current_app

from webapp import web
from webapp.campaigns import layout, links
from webapp.campaigns.models import Campaign
from webapp.campaigns.transport import Letter
from webapp.campaigns.wording import DEFAULT_SUBJECT, DEFAULT_TEXT, MailText, Parts, Slot, fill, split
from webapp.customers.models import Customer
from webapp.offers.models import Offer
from webapp.redemptions import personal
from webapp.redemptions.links import personal_url
from webapp.settings import Settings

# No customer has this id: links signed for it lead nowhere.
NOBODY = 0
_WORD = 45
_NEVER = ("Cc", "Cs", "Co", "Zl", "Zp")
_PLAIN_NAME = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789 !#$%&'*+-/=?^_`{|}~")


@dataclass(frozen=True)
class Preview:
    """A mail as one recipient would see it."""

    subject: str
    text: str
    html: str


class FormLetter:
    """The mail of one campaign, ready to be addressed. Made once; then it touches no database.

    :param token: names the mail in its Message-ID; a test send has one of its own, so that the real mail is not
        taken for its copy.
    """

    def __init__(self, mail: MailText, offer: Offer, campaign_id: int, token: str | None = None) -> None:
        settings: Settings = current_app.config["SETTINGS"]
        self.offer_id = offer.id
        self.campaign_id = campaign_id
        self.token = token
        self.sender_name, self.sender = sender(settings.mail_default_sender)
        self.domain = self.sender.rpartition("@")[2]
        self.one_click = settings.public_url.startswith("https://")
        fixed = _same_for_all(offer, settings)
        code = offer.code_as_written
        self.code: Callable[[int], str] = lambda _: code
        if offer.personal_code_required:
            del fixed["offer.code"]
            self.code = partial(personal.code, code, offer.id)
        subject, text, body = _bodies(mail, settings.shop_name)
        self.subject = _settled(subject, fixed, _line)
        self.text = _settled(text, fixed, str)
        self.html = _settled(body, fixed, html.escape)
        self._head = self._fixed_headers(settings.shop_name)
        self._boundary = f"=_{secrets.token_hex(12)}"
        self._body = _multipart(self._boundary, self.text, self.html)
        self._used = {part.name for parts in (self.subject, self.text, self.html) for part in _slots(parts)}

    def preview(self, customer: Customer) -> Preview:
        """What this customer would read. Links and a personal code are nobody's: who may look may not act for them."""
        values = self._values(customer, bearer=NOBODY)
        return Preview(fill(self.subject, values, _line), fill(self.text, values), fill(self.html, values, html.escape))

    def letter(self, customer: Customer) -> Letter:
        """The finished bytes for this customer."""
        values = self._values(customer, bearer=customer.id)
        to = address(customer)
        pieces = [
            self._head,
            header("Subject", fill(self.subject, values, _line)),
            address_header("To", values["customer.name"], to),
            f"Date: {format_datetime(datetime.now(UTC))}\r\nMessage-ID: {self._message_id(customer.id)}\r\n".encode(),
            self._unsubscribe_headers(values["unsubscribe"]),
            f'Content-Type: multipart/alternative;\r\n boundary="{self._boundary}"\r\n\r\n'.encode(),
        ]
        for piece in self._body:
            pieces.append(piece if isinstance(piece, bytes) else piece.stamp(values))
        return Letter(self.sender, to, b"".join(pieces))

    def _values(self, customer: Customer, bearer: int) -> dict[str, str]:
        values = {
            "customer.name": _line(customer.name),
            "customer.email": customer.email_as_given,
            "unsubscribe": links.unsubscribe_url(bearer, self.campaign_id),
        }
        if "link" in self._used:
            values["link"] = personal_url(self.offer_id, bearer)
        if "offer.code" in self._used:
            values["offer.code"] = self.code(bearer)
        return values

    def _message_id(self, customer_id: int) -> str:
        if self.token is not None:
            return f"<{self.token}@{self.domain}>"
        return links.message_id(self.campaign_id, customer_id, self.domain)

    def _fixed_headers(self, shop_name: str) -> bytes:
        return b"".join(
            (
                address_header("From", self.sender_name, self.sender),
                address_header("List-Id", shop_name, f"offers.{self.domain}"),
                header("Feedback-ID", f"{self.campaign_id}:{self.offer_id}:mailing:onecode"),
                b"Precedence: bulk\r\nAuto-Submitted: auto-generated\r\nMIME-Version: 1.0\r\n",
                header("X-Campaign-Id", str(self.campaign_id)),
            )
        )

    def _unsubscribe_headers(self, url: str) -> bytes:
        """RFC 2369 and, where a provider may post to us, RFC 8058. Addresses are never encoded, only folded."""
        refuse_line_breaks(url)
        lines = f"List-Unsubscribe: <{url}>,\r\n <mailto:{self.sender}?subject=unsubscribe>\r\n"
        if self.one_click:
            lines += "List-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n"
        return lines.encode("ascii")


@dataclass(frozen=True)
class _Stamp:
    """Where a value goes into a body that is quoted-printable already."""

    slot: Slot
    escape: Callable[[str], str]
    ends_line: bool

    def stamp(self, values: Mapping[str, str]) -> bytes:
        value = values[self.slot.name] or self.slot.fallback
        quoted = _quoted(self.escape(value))
        return quoted if self.ends_line else _broken_off(quoted)


def sender(configured: str) -> tuple[str, str]:
    """(name, address) of the configured sender, its domain as IDNA 2008."""
    refuse_line_breaks(configured)
    name, given = parseaddr(configured)
    local, _, domain = given.rpartition("@")
    return name, f"{local}@{domain if domain.isascii() else idna.encode(domain, uts46=True).decode()}"


def address(customer: Customer) -> str:
    """Where the mail goes: the local part as it was given, the domain as IDNA 2008."""
    local, _, domain = customer.email.rpartition("@")
    given = customer.email_as_given.strip().rpartition("@")[0]
    return f"{given if given.lower() == local else local}@{domain}"


def header(name: str, value: str) -> bytes:
    """One header line, encoded (RFC 2047) when it has to be.

    :raises ValueError: for a line break, which would start another header.
    """
    refuse_line_breaks(value)
    if value.isascii() and value.isprintable() and len(value) <= 200 and "=?" not in value:
        return f"{name}: {value}\r\n".encode()
    return f"{name}: {_encoded_words(value)}\r\n".encode()


def refuse_line_breaks(value: str) -> None:
    if "\r" in value or "\n" in value:
        raise ValueError("a header value must not have a line break in it")


def address_header(name: str, words: str, to: str) -> bytes:
    """One header line with a name, if there is one, and an address."""
    refuse_line_breaks(words + to)
    if not words:
        return f"{name}: <{to}>\r\n".encode()
    if len(words) <= 60 and _PLAIN_NAME.issuperset(words) and "=?" not in words:
        return f"{name}: {words} <{to}>\r\n".encode()
    if len(words) <= 60 and words.isascii() and words.isprintable() and "=?" not in words:
        quoted = words.replace("\\", "\\\\").replace('"', '\\"')
        return f'{name}: "{quoted}" <{to}>\r\n'.encode()
    return f"{name}: {_encoded_words(words)}\r\n <{to}>\r\n".encode()


def _encoded_words(value: str) -> str:
    """RFC 2047: words of at most 75 characters, none of which splits a character."""
    words, held = [], b""
    for character in value:
        coded = character.encode()
        if len(held) + len(coded) > _WORD:
            words.append(held)
            held = b""
        held += coded
    words.append(held)
    return "\r\n ".join(f"=?utf-8?b?{base64.b64encode(word).decode()}?=" for word in words)


def _bodies(mail: MailText, shop_name: str) -> tuple[Parts, Parts, Parts]:
    """Subject, text and HTML, with what staff left empty made from the rest or from the default."""
    subject = split(mail.subject.strip() or DEFAULT_SUBJECT)
    if mail.html.strip():
        body = split(mail.html)
        text = split(mail.text) if mail.text.strip() else layout.text_of(body)
        return subject, layout.text_with_foot(text), layout.finished(body)
    text = split(mail.text if mail.text.strip() else DEFAULT_TEXT)
    return subject, layout.text_with_foot(text), layout.designed(text, subject, shop_name)


def _same_for_all(offer: Offer, settings: Settings) -> dict[str, str]:
    ends = web.last_day(offer.ends_at, offer.time_zone) if offer.ends_at is not None else "further notice"
    return {
        "offer.name": _line(offer.name),
        "offer.code": offer.code_as_written,
        "offer.discount": web.discount(offer.discount),
        "offer.ends": ends,
        "shop.name": _line(settings.shop_name),
    }


def _settled(parts: Parts, fixed: Mapping[str, str], escape: Callable[[str], str]) -> Parts:
    """What is the same for every recipient becomes part of the text; neighbours are joined."""
    settled: list[str | Slot] = []
    for part in parts:
        if isinstance(part, Slot) and part.name in fixed:
            part = escape(fixed[part.name] or part.fallback)
        if isinstance(part, str) and settled and isinstance(settled[-1], str):
            settled[-1] += part
        else:
            settled.append(part)
    return tuple(settled)


def _multipart(boundary: str, text: Parts, body: Parts) -> list[bytes | _Stamp]:
    """Both bodies in quoted-printable. The boundary can't occur in them: `=_` is no such code."""
    out: list[bytes | _Stamp] = []
    for subtype, parts, escape in (("plain", text, str), ("html", body, html.escape)):
        head = f"--{boundary}\r\nContent-Type: text/{subtype}; charset=utf-8\r\n"
        out += [head.encode() + b"Content-Transfer-Encoding: quoted-printable\r\n\r\n", *_pieces(parts, escape)]
        out.append(b"\r\n")
    return [*out, f"--{boundary}--\r\n".encode()]


def _pieces(parts: Parts, escape: Callable[[str], str]) -> list[bytes | _Stamp]:
    pieces: list[bytes | _Stamp] = []
    for index, part in enumerate(parts):
        following = parts[index + 1] if index + 1 < len(parts) else "\n"
        if isinstance(part, Slot):
            ends_line = isinstance(following, str) and following.startswith(("\n", "\r\n"))
            pieces.append(_Stamp(part, escape, ends_line))
        else:
            quoted = _quoted(part)
            starts_line = quoted.endswith(b"\r\n") or isinstance(following, str)
            pieces.append(quoted if starts_line else _broken_off(quoted))
    return pieces


def _quoted(text: str) -> bytes:
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    # The soft breaks it puts in end like the text's own lines, if it has any: so all become CRLF afterwards.
    return binascii.b2a_qp(lines.encode(), istext=True).replace(b"\n", b"\r\n")


def _broken_off(quoted: bytes) -> bytes:
    """With a soft line break behind it; no line gets longer than 76."""
    if len(quoted) - quoted.rfind(b"\n") - 1 < 76:
        return quoted + b"=\r\n"
    last = 3 if quoted[-3:-2] == b"=" else 1
    return quoted[:-last] + b"=\r\n" + quoted[-last:] + b"=\r\n"


def _slots(parts: Parts) -> list[Slot]:
    return [part for part in parts if isinstance(part, Slot)]


def _line(value: str) -> str:
    """A value that may stand in a header: one line. What joins emoji and turns writing round stays."""
    return " ".join("".join(" " if unicodedata.category(c) in _NEVER else c for c in value).split())


def of_campaign(campaign: Campaign, offer: Offer) -> FormLetter:
    """The form letter of a stored campaign."""
    return FormLetter(MailText(campaign.subject, campaign.text, campaign.html), offer, campaign.id)


def shown_sender() -> str:
    """Whom recipients see as the sender."""
    name, given = sender(current_app.config["SETTINGS"].mail_default_sender)
    return f"{name} <{given}>" if name else given
