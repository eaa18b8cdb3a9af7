"""A campaign's mail: written out once for each language among its recipients, then stamped with each one's own words.

Building and serialising a MIME message costs about two milliseconds, so it is not done for each recipient: see quoted.
"""

from __future__ import annotations

import email
import email.policy
import html
import secrets
import time
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import format_datetime
from functools import lru_cache, partial

from flask import current_app

from webapp.campaigns import tokens as campaign_tokens
from webapp.campaigns.content import design, lint
from webapp.campaigns.content.placeholders import DEFAULT_SUBJECT, DEFAULT_TEXT, EmailContent, parse_template
from webapp.campaigns.models import Campaign
from webapp.core import formatting
from webapp.core.errors import FieldError, InvalidInput
from webapp.core.settings import Settings
from webapp.customers.models import Customer
from webapp.mail import bidi, html_depth, locales, quoted_printable
from webapp.mail.addresses import recipient_address, sender_address
from webapp.mail.bidi import PlaceholderRenderer
from webapp.mail.headers import format_address_header, format_header, reject_line_breaks
from webapp.mail.smtp import OutgoingMessage
from webapp.mail.template import Placeholder, TemplateParts
from webapp.offers.models import Offer
from webapp.redemptions import personal_codes
from webapp.redemptions.personal_links import PREVIEW_CUSTOMER_ID, make_personal_url_builder
from webapp.shop import queries as shop_queries
from webapp.shop.models import ShopValues

NO_END_FALLBACK = "further notice"
_FORBIDDEN_CATEGORIES = ("Cc", "Cs", "Co", "Zl", "Zp")


@dataclass(frozen=True)
class Preview:
    """A mail as one recipient would get it, taken apart again from its very bytes.

    :param head: its headers, as they are sent.
    :param size: of the HTML, in bytes.
    :param advice: what staff may want to mend; nothing of it keeps the mail from being sent.
    """

    subject: str
    text: str
    html: str
    headers: str
    html_size: int
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _LocalisedMessage:
    """The mail in one language: dates, money and percent are in it."""

    subject: TemplateParts
    # The whole header, where the subject has no words of a recipient's own.
    subject_header: bytes | None
    body: quoted_printable.MergeBody


class MailMerge:
    """The mail of one campaign, ready to be addressed. Made once; then it touches no database.

    :param token: names the mail in its Message-ID; a test send has one of its own, so that the real mail is not
        taken for its copy.
    :param shop: what is known of the shop, unless another one is to be looked at.
    """

    def __init__(
        self,
        mail: EmailContent,
        offer: Offer,
        campaign_id: int,
        token: str | None = None,
        shop: ShopValues | None = None,
    ) -> None:
        settings: Settings = current_app.config["SETTINGS"]
        self.shop = shop or shop_queries.get_shop()
        self.offer_id = offer.id
        self.campaign_id = campaign_id
        self._is_test = token is not None
        self.sender = sender_address(settings.mail_default_sender)
        domain = self.sender.rpartition("@")[2]
        self.supports_one_click = settings.public_url.startswith("https://")
        self._personal_url, self._unsubscribe_url = (
            make_personal_url_builder(offer.id),
            campaign_tokens.unsubscribe_url_builder(campaign_id),
        )
        self._message_id_for = (
            (lambda _: f"<{token}@{domain}>") if token else campaign_tokens.message_id_builder(campaign_id, domain)
        )
        code = offer.code_as_written
        self._personal_code: Callable[[int], str] | None = None
        if offer.personal_code_required:
            self._personal_code = partial(personal_codes.derive_personal_code, code, offer.id)
        # Plain values: the row may be gone from its session when the first letter is written.
        self._discount, self._ends_at, self._time_zone = offer.discount, offer.ends_at, offer.time_zone
        fixed = {"offer.name": _clean_value(offer.name), "offer.code": code, "shop.name": _clean_value(self.shop.name)}
        if self._personal_code:
            del fixed["offer.code"]
        length = len(code) + (personal_codes.SUFFIX_LENGTH + 1 if self._personal_code else 0)
        # Of a mail that was stored before such were refused. Each of its letters fails in words.
        self._html_error: html_depth.HtmlTooDeep | None = None
        try:
            subject, text, body = _build_parts(mail, self.shop, length)
        except html_depth.HtmlTooDeep as error:
            self._html_error = error
            subject, text, body = _build_parts(EmailContent(mail.subject, mail.text), self.shop, length)
        self._lint = partial(lint.lint_content, mail, subject, text, body, code, self._ends_at is not None)
        way = bidi.is_text_right_to_left(text, locales.is_locale_right_to_left(self.shop.locale))
        self._subject_renderer = PlaceholderRenderer(str, bidi.is_text_right_to_left(subject, way))
        self._text_renderer = PlaceholderRenderer(str, way)
        self._html_renderer = PlaceholderRenderer(html.escape, way, "<bdi>", "</bdi>")
        subject, text, body = (
            bidi.isolate_placeholders(subject),
            bidi.isolate_placeholders(text),
            bidi.isolate_html_placeholders(body),
        )
        self.subject = _substitute_values(subject, fixed, self._subject_renderer)
        self.text = _substitute_values(text, fixed, self._text_renderer)
        self.html = _substitute_values(body, fixed, self._html_renderer)
        self._used_placeholders = {
            part.name for parts in (subject, text, body) for part in parts if isinstance(part, Placeholder)
        }
        self._common_headers = self._build_common_headers(domain)
        self._boundary = f"=_{secrets.token_hex(12)}"
        self._content_type = f'Content-Type: multipart/alternative;\r\n boundary="{self._boundary}"\r\n\r\n'.encode()
        self._messages_by_tag: dict[str | None, _LocalisedMessage] = {}
        self._messages_by_values: dict[tuple[str, ...], _LocalisedMessage] = {}

    def preview(self, customer: Customer) -> Preview:
        """What this customer would read. Links and a personal code are nobody's: who may look may not act for them.

        :raises Invalid: when its HTML can't be read.
        """
        if self._html_error:
            raise InvalidInput(FieldError("html", "html_broken", str(self._html_error))) from self._html_error
        raw = self._build_bytes(customer, PREVIEW_CUSTOMER_ID, recipient_address(customer))
        mail = email.message_from_bytes(raw.replace(b"\r\n", b"\n"), policy=email.policy.default)
        subject, text, body = str(mail["Subject"]), _get_body_content(mail, "plain"), _get_body_content(mail, "html")
        size = len(body.encode())
        head = raw.partition(b"\r\n\r\n")[0].decode().replace("\r\n", "\n")
        return Preview(subject, text, body, head, size, tuple(self._lint(subject, size)))

    def build_message(self, customer: Customer) -> OutgoingMessage:
        """The finished bytes for this customer.

        :raises ValueError: when the mail, or what is put in for this customer, can't be written.
        """
        if self._html_error:
            raise ValueError(str(self._html_error))
        to = recipient_address(customer)
        return OutgoingMessage(self._return_path(customer.id), to, self._build_bytes(customer, customer.id, to))

    def _build_bytes(self, customer: Customer, bearer: int, to: str) -> bytes:
        written = self._messages_by_tag.get(customer.locale) or self._localise(customer.locale)
        values = self._recipient_values(customer, bearer)
        head = (
            self._common_headers,
            written.subject_header or format_header("Subject", self._render_subject(written.subject, values)),
            format_address_header("To", values["customer.name"], to),
            _date_header(int(time.time())),
            f"Message-ID: {self._message_id_for(bearer)}\r\n".encode(),
            self._unsubscribe_headers(values["unsubscribe"], self._return_path(bearer)),
            self._content_type,
        )
        return b"".join((*head, *written.body.render(values)))

    def _recipient_values(self, customer: Customer, bearer: int) -> dict[str, str]:
        values = {
            "customer.name": _clean_value(customer.name),
            "customer.email": _clean_value(customer.email_as_given),
            "unsubscribe": self._unsubscribe_url(bearer),
        }
        if "link" in self._used_placeholders:
            values["link"] = self._personal_url(bearer)
        if self._personal_code and "offer.code" in self._used_placeholders:
            values["offer.code"] = self._personal_code(bearer)
        return values

    def _localise(self, tag: str | None) -> _LocalisedMessage:
        locale = locales.resolve_locale(tag, self.shop.locale)
        ends = formatting.format_last_day(self._ends_at, self._time_zone, locale) if self._ends_at is not None else ""
        values = {"offer.discount": formatting.format_discount(self._discount, locale), "offer.ends": ends}
        # Many languages write these the same.
        key = tuple(values.values())
        written = self._messages_by_values.get(key) or self._localise_with_values(values)
        self._messages_by_values[key] = self._messages_by_tag[tag] = written
        return written

    def _localise_with_values(self, values: Mapping[str, str]) -> _LocalisedMessage:
        subject = _substitute_values(self.subject, values, self._subject_renderer)
        said = (
            None
            if any(isinstance(part, Placeholder) for part in subject)
            else format_header("Subject", self._render_subject(subject, {}))
        )
        text, body = (
            _substitute_values(self.text, values, self._text_renderer),
            _substitute_values(self.html, values, self._html_renderer),
        )
        bodies = ("plain", text, self._text_renderer), ("html", body, self._html_renderer)
        return _LocalisedMessage(subject, said, _build_multipart(self._boundary, *bodies))

    def _render_subject(self, subject: TemplateParts, values: Mapping[str, str]) -> str:
        written = (p if isinstance(p, str) else self._subject_renderer(p, values[p.name]) for p in subject)
        return _to_single_line("".join(written))

    def _build_common_headers(self, domain: str) -> bytes:
        name, reply_to = _to_single_line(self.shop.name), self.shop.reply_to
        return b"".join(
            (
                format_address_header("From", _to_single_line(self.shop.sender_name), self.sender),
                format_address_header("Reply-To", "", sender_address(reply_to)) if reply_to else b"",
                format_address_header("List-Id", name, f"offers.{domain}"),
                format_header("Feedback-ID", f"{self.campaign_id}:{self.offer_id}:mailing:onecode"),
                b"Precedence: bulk\r\nAuto-Submitted: auto-generated\r\nMIME-Version: 1.0\r\n",
                format_header("X-Campaign-Id", str(self.campaign_id)),
            )
        )

    def _return_path(self, bearer: int) -> str:
        return (
            self.sender if self._is_test else campaign_tokens.build_return_path(self.campaign_id, bearer, self.sender)
        )

    def _unsubscribe_headers(self, url: str, mailbox: str) -> bytes:
        """RFC 2369 and, where a provider may post to us, RFC 8058. Addresses are never encoded, only folded."""
        reject_line_breaks(url)
        lines = f"List-Unsubscribe: <{url}>,\r\n <mailto:{mailbox}?subject=unsubscribe>\r\n"
        if self.supports_one_click:
            lines += "List-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n"
        return lines.encode("ascii")


def create_mail_merge(campaign: Campaign, offer: Offer) -> MailMerge:
    """The form letter of a stored campaign."""
    return MailMerge(EmailContent(campaign.subject, campaign.text, campaign.html), offer, campaign.id)


def _build_parts(
    mail: EmailContent, shop: ShopValues, code_length: int
) -> tuple[TemplateParts, TemplateParts, TemplateParts]:
    """Subject, text and HTML, with what staff left empty made from the rest or from the default."""
    subject = parse_template(mail.subject.strip() or DEFAULT_SUBJECT)
    if mail.html.strip():
        body = parse_template(mail.html)
        text = parse_template(mail.text) if mail.text.strip() else design.convert_html_to_text(body)
        return subject, design.add_text_footer(text, shop), design.finish_custom_html(body, shop)
    text = parse_template(mail.text if mail.text.strip() else DEFAULT_TEXT)
    return subject, design.add_text_footer(text, shop), design.render_designed_html(text, subject, shop, code_length)


def _substitute_values(parts: TemplateParts, fixed: Mapping[str, str], written: PlaceholderRenderer) -> TemplateParts:
    """What is the same for all becomes part of the text; neighbours are joined."""
    settled: list[str | Placeholder] = []
    for part in parts:
        if isinstance(part, Placeholder) and part.name in fixed:
            fallback = part.fallback or (NO_END_FALLBACK if part.name == "offer.ends" else "")
            part = written(replace(part, fallback=fallback), fixed[part.name])
        if isinstance(part, str) and settled and isinstance(settled[-1], str):
            settled[-1] += part
        else:
            settled.append(part)
    return tuple(settled)


def _build_multipart(
    boundary: str, *bodies: tuple[str, TemplateParts, PlaceholderRenderer]
) -> quoted_printable.MergeBody:
    """Both bodies in quoted-printable. The boundary can't occur in them: `=_` is no such code."""
    out: list[bytes | quoted_printable.MergeField] = []
    for subtype, parts, written in bodies:
        head = f"--{boundary}\r\nContent-Type: text/{subtype}; charset=utf-8\r\n"
        out += [
            head.encode() + b"Content-Transfer-Encoding: quoted-printable\r\n\r\n",
            *quoted_printable.encode_body(parts, written),
        ]
        out.append(b"\r\n")
    return quoted_printable.MergeBody([*out, f"--{boundary}--\r\n".encode()])


def _get_body_content(mail: EmailMessage, subtype: str) -> str:
    part = mail.get_body((subtype,))
    return str(part.get_content()) if part is not None else ""


@lru_cache(2)
def _date_header(second: int) -> bytes:
    return f"Date: {format_datetime(datetime.fromtimestamp(second, UTC))}\r\n".encode()


def _clean_value(value: str) -> str:
    """A value on one line, without what would turn the words behind it."""
    return _to_single_line(value) if value.isprintable() else bidi.BIDI_CONTROLS.sub("", _to_single_line(value))


def _to_single_line(value: str) -> str:
    """A value that may stand in a header: one line. What joins emoji and turns writing round stays."""
    if not value.isprintable():
        value = "".join(" " if unicodedata.category(c) in _FORBIDDEN_CATEGORIES else c for c in value)
    return " ".join(value.split())
