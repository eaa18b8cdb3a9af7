"""Mail merge for the email of a campaign.

The email is rendered once per language; then only each recipient's values are filled in.

Building and serialising a MIME message takes about two milliseconds, so this is not done for each recipient; see
`webapp.mail.quoted_printable`.
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
from flask_babel import lazy_gettext as _l

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
from webapp.mail.outgoing_message import OutgoingMessage
from webapp.mail.template import Placeholder, TemplateParts
from webapp.offers.models import Offer
from webapp.redemptions import personal_codes
from webapp.redemptions.personal_links import PREVIEW_CUSTOMER_ID, create_personal_url_builder
from webapp.shop import queries as shop_queries
from webapp.shop.models import ShopValues

# Replaces the placeholder of the last day in emails of offers without an end.
NO_END_FALLBACK = _l("further notice")
_FORBIDDEN_CATEGORIES = ("Cc", "Cs", "Co", "Zl", "Zp")


@dataclass(frozen=True)
class Preview:
    """An email as one recipient would get it, parsed from the bytes to send.

    :ivar headers: the header lines as they are sent.
    :ivar html_size: bytes of the HTML.
    :ivar warnings: sentences about possible problems; none of them prevents sending.
    """

    subject: str
    text: str
    html: str
    headers: str
    html_size: int
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _LocalisedMessage:
    """The email in one language, with dates, amounts and percentages filled in."""

    subject: TemplateParts
    # The finished header line, if the subject has no values of the recipient.
    subject_header: bytes | None
    body: quoted_printable.MergeBody


class MailMerge:
    """The email of one campaign, ready to be addressed.

    It accesses the database only when it is created.

    :param token: identifies the email in its Message-ID; each test email has its own, so that mail clients do not
        treat the real email as a duplicate.
    :param shop: settings of the shop, by default the stored ones.
    """

    def __init__(
        self,
        content: EmailContent,
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
            create_personal_url_builder(offer.id),
            campaign_tokens.create_unsubscribe_url_builder(campaign_id),
        )
        self._message_id_for = (
            (lambda _: f"<{token}@{domain}>")
            if token
            else campaign_tokens.create_message_id_builder(campaign_id, domain)
        )
        code = offer.code_as_written
        self._personal_code: Callable[[int], str] | None = None
        if offer.personal_code_required:
            self._personal_code = partial(personal_codes.derive_personal_code, code, offer.id)
        # Plain values: the session of the row may be closed when the first message is built.
        self._discount, self._ends_at, self._time_zone = offer.discount, offer.ends_at, offer.time_zone
        common_values = {"offer.name": _clean_value(offer.name), "shop.name": _clean_value(self.shop.name)}
        if self._personal_code is None:
            common_values["offer.code"] = code
        code_length = len(code) + (personal_codes.SUFFIX_LENGTH + 1 if self._personal_code else 0)
        # Emails stored before this check existed may contain such HTML; each of their messages fails with this error.
        self._html_error: html_depth.HtmlTooDeep | None = None
        try:
            subject, text, body = _build_parts(content, self.shop, code_length)
        except html_depth.HtmlTooDeep as error:
            self._html_error = error
            subject, text, body = _build_parts(EmailContent(content.subject, content.text), self.shop, code_length)
        self._lint = partial(lint.lint_content, content, subject, text, body, code, self._ends_at is not None)
        is_right_to_left = bidi.is_text_right_to_left(text, locales.is_locale_right_to_left(self.shop.locale))
        self._subject_renderer = PlaceholderRenderer(str, bidi.is_text_right_to_left(subject, is_right_to_left))
        self._text_renderer = PlaceholderRenderer(str, is_right_to_left)
        self._html_renderer = PlaceholderRenderer(html.escape, is_right_to_left, "<bdi>", "</bdi>")
        subject, text, body = (
            bidi.isolate_placeholders(subject),
            bidi.isolate_placeholders(text),
            bidi.isolate_html_placeholders(body),
        )
        self.subject = _substitute_values(subject, common_values, self._subject_renderer)
        self.text = _substitute_values(text, common_values, self._text_renderer)
        self.html = _substitute_values(body, common_values, self._html_renderer)
        self._used_placeholders = {
            part.name for parts in (subject, text, body) for part in parts if isinstance(part, Placeholder)
        }
        self._common_headers = self._build_common_headers(domain)
        self._boundary = f"=_{secrets.token_hex(12)}"
        self._content_type = f'Content-Type: multipart/alternative;\r\n boundary="{self._boundary}"\r\n\r\n'.encode()
        self._messages_by_tag: dict[str | None, _LocalisedMessage] = {}
        self._messages_by_values: dict[tuple[str, ...], _LocalisedMessage] = {}

    def preview(self, customer: Customer) -> Preview:
        """Render the email as this customer would see it.

        Links and a personal code belong to no customer, so that staff cannot use them in the customer's name.

        :raises InvalidInput: when the HTML is nested too deep.
        """
        if self._html_error:
            raise InvalidInput(FieldError("html", "html_broken", str(self._html_error))) from self._html_error
        raw = self._build_bytes(customer, PREVIEW_CUSTOMER_ID, recipient_address(customer))
        message = email.message_from_bytes(raw.replace(b"\r\n", b"\n"), policy=email.policy.default)
        subject, body = str(message["Subject"]), _get_body_content(message, "html")
        html_size = len(body.encode())
        headers = raw.partition(b"\r\n\r\n")[0].decode().replace("\r\n", "\n")
        warnings = tuple(self._lint(subject, html_size))
        return Preview(subject, _get_body_content(message, "plain"), body, headers, html_size, warnings)

    def build_message(self, customer: Customer) -> OutgoingMessage:
        """Build the finished message for this customer.

        :raises ValueError: when the email, or a value of this customer, cannot be encoded.
        """
        if self._html_error:
            raise ValueError(str(self._html_error))
        address = recipient_address(customer)
        return OutgoingMessage(
            self._return_path(customer.id), address, self._build_bytes(customer, customer.id, address)
        )

    def _build_bytes(self, customer: Customer, link_customer_id: int, address: str) -> bytes:
        message = self._messages_by_tag.get(customer.locale) or self._localise(customer.locale)
        values = self._recipient_values(customer, link_customer_id)
        headers = (
            self._common_headers,
            message.subject_header or format_header("Subject", self._render_subject(message.subject, values)),
            format_address_header("To", values["customer.name"], address),
            _date_header(int(time.time())),
            f"Message-ID: {self._message_id_for(link_customer_id)}\r\n".encode(),
            self._unsubscribe_headers(values["unsubscribe"], self._return_path(link_customer_id)),
            self._content_type,
        )
        return b"".join((*headers, *message.body.render(values)))

    def _recipient_values(self, customer: Customer, link_customer_id: int) -> dict[str, str]:
        values = {
            "customer.name": _clean_value(customer.name),
            "customer.email": _clean_value(customer.email_as_given),
            "unsubscribe": self._unsubscribe_url(link_customer_id),
        }
        if "link" in self._used_placeholders:
            values["link"] = self._personal_url(link_customer_id)
        if self._personal_code and "offer.code" in self._used_placeholders:
            values["offer.code"] = self._personal_code(link_customer_id)
        return values

    def _localise(self, tag: str | None) -> _LocalisedMessage:
        locale = locales.resolve_locale(tag, self.shop.locale)
        ends = formatting.format_last_day(self._ends_at, self._time_zone, locale) if self._ends_at is not None else ""
        values = {"offer.discount": formatting.format_discount(self._discount, locale), "offer.ends": ends}
        # Many languages format these values identically.
        key = tuple(values.values())
        message = self._messages_by_values.get(key) or self._localise_with_values(values)
        self._messages_by_values[key] = self._messages_by_tag[tag] = message
        return message

    def _localise_with_values(self, values: Mapping[str, str]) -> _LocalisedMessage:
        subject = _substitute_values(self.subject, values, self._subject_renderer)
        subject_header = None
        if not any(isinstance(part, Placeholder) for part in subject):
            subject_header = format_header("Subject", self._render_subject(subject, {}))
        text, body = (
            _substitute_values(self.text, values, self._text_renderer),
            _substitute_values(self.html, values, self._html_renderer),
        )
        bodies = ("plain", text, self._text_renderer), ("html", body, self._html_renderer)
        return _LocalisedMessage(subject, subject_header, _build_multipart(self._boundary, *bodies))

    def _render_subject(self, subject: TemplateParts, values: Mapping[str, str]) -> str:
        rendered = (
            part if isinstance(part, str) else self._subject_renderer(part, values[part.name]) for part in subject
        )
        return _to_single_line("".join(rendered))

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

    def _return_path(self, link_customer_id: int) -> str:
        if self._is_test:
            return self.sender
        return campaign_tokens.build_return_path(self.campaign_id, link_customer_id, self.sender)

    def _unsubscribe_headers(self, url: str, mailbox: str) -> bytes:
        """Build the headers of RFC 2369 and, with HTTPS, those of RFC 8058.

        URLs and addresses are folded, never encoded.
        """
        reject_line_breaks(url)
        lines = f"List-Unsubscribe: <{url}>,\r\n <mailto:{mailbox}?subject=unsubscribe>\r\n"
        if self.supports_one_click:
            lines += "List-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n"
        return lines.encode("ascii")


def create_mail_merge(campaign: Campaign, offer: Offer) -> MailMerge:
    """Create the mail merge of a stored campaign."""
    return MailMerge(EmailContent(campaign.subject, campaign.text, campaign.html), offer, campaign.id)


def _build_parts(
    content: EmailContent, shop: ShopValues, code_length: int
) -> tuple[TemplateParts, TemplateParts, TemplateParts]:
    """Build subject, text and HTML.

    Empty fields are derived from the others or from the default content.
    """
    subject = parse_template(content.subject.strip() or str(DEFAULT_SUBJECT))
    if content.html.strip():
        body = parse_template(content.html)
        text = parse_template(content.text) if content.text.strip() else design.convert_html_to_text(body)
        return subject, design.add_text_footer(text, shop), design.finish_custom_html(body, shop)
    text = parse_template(content.text if content.text.strip() else str(DEFAULT_TEXT))
    return subject, design.add_text_footer(text, shop), design.render_designed_html(text, subject, shop, code_length)


def _substitute_values(parts: TemplateParts, values: Mapping[str, str], renderer: PlaceholderRenderer) -> TemplateParts:
    """Replace the placeholders that have a value by text, and join neighbouring texts."""
    substituted: list[str | Placeholder] = []
    for part in parts:
        if isinstance(part, Placeholder) and part.name in values:
            fallback = part.fallback or (str(NO_END_FALLBACK) if part.name == "offer.ends" else "")
            part = renderer(replace(part, fallback=fallback), values[part.name])
        if isinstance(part, str) and substituted and isinstance(substituted[-1], str):
            substituted[-1] += part
        else:
            substituted.append(part)
    return tuple(substituted)


def _build_multipart(
    boundary: str, *bodies: tuple[str, TemplateParts, PlaceholderRenderer]
) -> quoted_printable.MergeBody:
    """Encode both bodies as quoted-printable.

    The boundary contains `=_`, which cannot occur in that encoding.
    """
    segments: list[bytes | quoted_printable.MergeField] = []
    for subtype, parts, renderer in bodies:
        header = f"--{boundary}\r\nContent-Type: text/{subtype}; charset=utf-8\r\n"
        segments += [
            header.encode() + b"Content-Transfer-Encoding: quoted-printable\r\n\r\n",
            *quoted_printable.encode_body(parts, renderer),
        ]
        segments.append(b"\r\n")
    return quoted_printable.MergeBody([*segments, f"--{boundary}--\r\n".encode()])


def _get_body_content(message: EmailMessage, subtype: str) -> str:
    part = message.get_body((subtype,))
    return str(part.get_content()) if part is not None else ""


@lru_cache(2)
def _date_header(second: int) -> bytes:
    return f"Date: {format_datetime(datetime.fromtimestamp(second, UTC))}\r\n".encode()


def _clean_value(value: str) -> str:
    """Put a value on one line, without bidi controls.

    Such characters would affect the text after the value.
    """
    return _to_single_line(value) if value.isprintable() else bidi.BIDI_CONTROLS.sub("", _to_single_line(value))


def _to_single_line(value: str) -> str:
    """Put a value on one line, as headers require.

    Emoji joiners and bidi controls stay.
    """
    if not value.isprintable():
        value = "".join(
            " " if unicodedata.category(character) in _FORBIDDEN_CATEGORIES else character for character in value
        )
    return " ".join(value.split())
