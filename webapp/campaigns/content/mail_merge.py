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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from email.message import EmailMessage
from functools import partial
from itertools import chain
from typing import NamedTuple

from flask_babel import lazy_gettext as _l

from webapp.campaigns import tokens as campaign_tokens
from webapp.campaigns.content import design, lint
from webapp.campaigns.content.campaign_headers import CampaignHeaders
from webapp.campaigns.content.placeholders import DEFAULT_SUBJECT, DEFAULT_TEXT, EmailContent, parse_template
from webapp.campaigns.models import Campaign
from webapp.core import formatting
from webapp.core.errors import FieldError, InvalidInput
from webapp.customers.models import Customer
from webapp.mail import bidi, html_depth, locales, quoted_printable
from webapp.mail.addresses import recipient_address
from webapp.mail.bidi import PlaceholderRenderer
from webapp.mail.headers import format_header, to_single_line
from webapp.mail.outgoing_message import OutgoingMessage
from webapp.mail.template import Placeholder, TemplateParts
from webapp.offers.models import Offer
from webapp.redemptions import personal_codes
from webapp.redemptions.personal_links import PREVIEW_CUSTOMER_ID, create_personal_url_builder
from webapp.shop import queries as shop_queries
from webapp.shop.models import ShopValues

# Replaces the placeholder of the last day in emails of offers without an end.
NO_END_FALLBACK = _l("further notice")


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


class _EmailParts(NamedTuple):
    subject: TemplateParts
    text: TemplateParts
    html: TemplateParts


class _Renderers(NamedTuple):
    """Renders the values of the placeholders of each part."""

    subject: PlaceholderRenderer
    text: PlaceholderRenderer
    html: PlaceholderRenderer

    def substitute(self, parts: _EmailParts, values: Mapping[str, str]) -> _EmailParts:
        return _EmailParts(
            *(_substitute_values(part, values, render) for part, render in zip(parts, self, strict=True))
        )


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

    :param campaign_id: 0 for an email without a stored campaign: a sample, a preview or a test email.
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
        self.shop = shop or shop_queries.get_shop()
        self._headers = CampaignHeaders(self.shop, offer.id, campaign_id, token)
        self._personal_url = create_personal_url_builder(offer.id)
        self._unsubscribe_url = campaign_tokens.create_unsubscribe_url_builder(campaign_id)
        self._personal_code = _create_personal_code_builder(offer)
        # Plain values: the session of the row may be closed when the first message is built.
        self._discount, self._ends_at, self._time_zone = offer.discount, offer.ends_at, offer.time_zone
        parts, self._html_error = _build_valid_parts(content, self.shop, _max_code_length(offer))
        self._lint = partial(
            lint.lint_content, content, parts.text, parts.html, offer.code_as_written, offer.ends_at is not None
        )
        self._renderers = _create_renderers(parts, self.shop.locale)
        self._used_placeholders = {part.name for part in chain(*parts) if isinstance(part, Placeholder)}
        self._parts = self._renderers.substitute(_isolate_placeholders(parts), _common_values(offer, self.shop))
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
            self._headers.return_path(customer.id), address, self._build_bytes(customer, customer.id, address)
        )

    def _build_bytes(self, customer: Customer, link_customer_id: int, address: str) -> bytes:
        message = self._messages_by_tag.get(customer.locale) or self._localise(customer.locale)
        values = self._recipient_values(customer, link_customer_id)
        subject_header = message.subject_header or self._subject_header(message.subject, values)
        headers = self._headers.build(
            subject_header, values["customer.name"], address, link_customer_id, values["unsubscribe"]
        )
        return b"".join((headers, self._content_type, *message.body.render(values)))

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
        subject, text, body = self._renderers.substitute(self._parts, values)
        subject_header = None
        if not any(isinstance(part, Placeholder) for part in subject):
            subject_header = self._subject_header(subject, {})
        bodies = ("plain", text, self._renderers.text), ("html", body, self._renderers.html)
        return _LocalisedMessage(subject, subject_header, _build_multipart(self._boundary, *bodies))

    def _subject_header(self, subject: TemplateParts, values: Mapping[str, str]) -> bytes:
        rendered = (
            part if isinstance(part, str) else self._renderers.subject(part, values[part.name]) for part in subject
        )
        return format_header("Subject", to_single_line("".join(rendered)))


def create_mail_merge(campaign: Campaign, offer: Offer) -> MailMerge:
    """Create the mail merge of a stored campaign."""
    return MailMerge(EmailContent(campaign.subject, campaign.text, campaign.html), offer, campaign.id)


def _build_valid_parts(
    content: EmailContent, shop: ShopValues, code_length: int
) -> tuple[_EmailParts, html_depth.HtmlTooDeep | None]:
    """Build the parts, without custom HTML that is nested too deep; return that error too.

    Emails stored before this check existed may contain such HTML; each of their messages fails with this error.
    """
    try:
        return _build_parts(content, shop, code_length), None
    except html_depth.HtmlTooDeep as error:
        return _build_parts(EmailContent(content.subject, content.text), shop, code_length), error


def _build_parts(content: EmailContent, shop: ShopValues, code_length: int) -> _EmailParts:
    """Build subject, text and HTML.

    Empty fields are derived from the others or from the default content.
    """
    subject = parse_template(content.subject.strip() or str(DEFAULT_SUBJECT))
    if content.html.strip():
        body = parse_template(content.html)
        text = parse_template(content.text) if content.text.strip() else design.convert_html_to_text(body)
        return _EmailParts(subject, design.add_text_footer(text, shop), design.finish_custom_html(body, shop))
    text = parse_template(content.text if content.text.strip() else str(DEFAULT_TEXT))
    return _EmailParts(
        subject,
        design.add_text_footer(text, shop),
        design.render_designed_html(text, subject, shop, code_length),
    )


def _create_renderers(parts: _EmailParts, locale: str) -> _Renderers:
    """Create the renderers for the direction of the text; by default, that of the locale."""
    is_right_to_left = bidi.is_text_right_to_left(parts.text, locales.is_locale_right_to_left(locale))
    return _Renderers(
        PlaceholderRenderer(str, bidi.is_text_right_to_left(parts.subject, is_right_to_left)),
        PlaceholderRenderer(str, is_right_to_left),
        PlaceholderRenderer(html.escape, is_right_to_left, "<bdi>", "</bdi>"),
    )


def _isolate_placeholders(parts: _EmailParts) -> _EmailParts:
    return _EmailParts(
        bidi.isolate_placeholders(parts.subject),
        bidi.isolate_placeholders(parts.text),
        bidi.isolate_html_placeholders(parts.html),
    )


def _common_values(offer: Offer, shop: ShopValues) -> dict[str, str]:
    """Return the values that all recipients share in each language."""
    values = {"offer.name": _clean_value(offer.name), "shop.name": _clean_value(shop.name)}
    return values if offer.personal_code_required else values | {"offer.code": offer.code_as_written}


def _create_personal_code_builder(offer: Offer) -> Callable[[int], str] | None:
    if not offer.personal_code_required:
        return None
    return partial(personal_codes.derive_personal_code, offer.code_as_written, offer.id)


def _max_code_length(offer: Offer) -> int:
    return len(offer.code_as_written) + (personal_codes.SUFFIX_LENGTH + 1 if offer.personal_code_required else 0)


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


def _clean_value(value: str) -> str:
    """Put a value on one line, without bidi controls.

    Such characters would affect the text after the value.
    """
    return to_single_line(value) if value.isprintable() else bidi.BIDI_CONTROLS.sub("", to_single_line(value))
