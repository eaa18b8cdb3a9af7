"""Validate that an email can be sent as it is written.

Errors are found when it is saved, not when it is sent.
"""

from __future__ import annotations

import re
import unicodedata

from flask_babel import gettext as _

from webapp.campaigns.content import design
from webapp.campaigns.content.placeholders import (
    MAX_BODY_BYTES,
    MAX_SUBJECT_LENGTH,
    EmailContent,
    PlaceholderError,
    format_placeholder_list,
    parse_template,
)
from webapp.core import formatting
from webapp.core.errors import FieldError, InvalidInput
from webapp.mail import html_depth
from webapp.mail.marker_locations import locate_markers
from webapp.mail.template import Placeholder
from webapp.shop import queries as shop_queries

_STYLE_TAG = re.compile(r"(?i)<style\b|</style\s*>")
ContentError = tuple[str, str]


def validate_content(content: EmailContent, field_prefix: str = "") -> None:
    """Check that an email can be sent as it is.

    :param field_prefix: the email's field in the caller's input: "mail" reports errors of "mail.subject" and so on.
    :raises InvalidInput: with one error per field.
    """
    errors = []
    for field, value in (("subject", content.subject), ("text", content.text), ("html", content.html)):
        error = _find_error(field, value)
        if error:
            errors.append(FieldError(f"{field_prefix}.{field}" if field_prefix else field, *error))
    if errors:
        raise InvalidInput(*errors)


def _find_error(field: str, value: str) -> ContentError | None:
    """Return (key, sentence) of the first error of a field."""
    if field == "subject":
        if "\n" in value or "\r" in value:
            return "line_break", _("The subject must be one line.")
        if len(value) > MAX_SUBJECT_LENGTH:
            return "too_long", _(
                "The subject may have at most %(limit)s characters; this one has %(length)s.",
                limit=MAX_SUBJECT_LENGTH,
                length=formatting.format_number(len(value)),
            )
    size = len(value.encode("utf-8", "surrogatepass"))
    if size > MAX_BODY_BYTES:
        return "too_large", _(
            "This is larger than %(limit)s kB (it is %(size)s kB); mail clients would cut it off.",
            limit=MAX_BODY_BYTES // 1024,
            size=formatting.format_number(size // 1024),
        )
    if any(unicodedata.category(character) in ("Cc", "Cs", "Co") and character not in "\t\r\n" for character in value):
        return "bad_character", _("This contains characters that cannot be sent by email. Please type it again.")
    try:
        parse_template(value)
    except PlaceholderError as error:
        return "placeholder_unknown", str(error)
    return _find_unopened_braces(value, field == "html") or (
        _find_html_error(value) if field == "html" and value.strip() else None
    )


def _find_unopened_braces(value: str, is_html: bool) -> ContentError | None:
    """Find closing braces without opening ones. In style sheets they are usual."""
    literal_text = "".join(
        part for part in parse_template(strip_style_elements(value) if is_html else value) if isinstance(part, str)
    )
    position = literal_text.find("}}")
    if position < 0:
        return None
    return "placeholder_unknown", _(
        "“%(text)s” is not opened with {{. Available placeholders: %(available)s.",
        text=" ".join(literal_text[max(0, position - 25) : position + 2].split()),
        available=format_placeholder_list(),
    )


def strip_style_elements(source: str) -> str:
    """Remove the style sheets of HTML; an unclosed one stays."""
    pieces, end, start = [], 0, None
    for match in _STYLE_TAG.finditer(source):
        if match[0].startswith("</") and start is not None:
            pieces.append(source[end:start])
            end, start = match.end(), None
        elif not match[0].startswith("</") and start is None:
            start = match.start()
    return "".join([*pieces, source[end:]])


def _find_html_error(value: str) -> ContentError | None:
    """Find a placeholder that is removed or never shown when HTML is parsed."""
    source = parse_template(value)
    try:
        html_with_markers, placeholders = design.finish_html_with_markers(source, shop_queries.default_shop())
    except html_depth.HtmlTooDeep as error:
        return "html_broken", str(error)
    locations = locate_markers(html_with_markers)
    content_count = sum(isinstance(part, Placeholder) for part in source)
    for number, placeholder in enumerate(placeholders):
        location = locations.hidden.get(number)
        if number in locations.found and location is None:
            continue
        name = placeholder.name if number < content_count else None
        return "html_broken", _lost_placeholder_message(name, location)
    unsubscribe_links = {number for number, placeholder in enumerate(placeholders) if placeholder.name == "unsubscribe"}
    if not unsubscribe_links & (locations.text | locations.links):
        return "html_broken", _("The unsubscribe link can't be clicked: put {{ unsubscribe }} into an <a href>.")
    return None


def _lost_placeholder_message(name: str | None, location: str | None) -> str:
    """Explain where a placeholder is removed or hidden.

    :param name: the placeholder's name, None for the unsubscribe link that is added to the HTML.
    :param location: the hidden element, None when it does not occur in the parsed HTML at all.
    """
    message: str
    if name is None and location:
        message = _(
            "The unsubscribe link that is added at the end ends up in %(location)s. "
            "Close the comment, style sheet, tag or quotation mark before it.",
            location=location,
        )
    elif name is None:
        message = _(
            "The unsubscribe link that is added at the end would not appear in the email. "
            "Close the comment, style sheet, tag or quotation mark before it."
        )
    elif location:
        message = _(
            "The placeholder {{ %(name)s }} ends up in %(location)s. Move it, or fix the HTML: "
            "close the comment, style sheet, tag or quotation mark before it.",
            name=name,
            location=location,
        )
    else:
        message = _(
            "The placeholder {{ %(name)s }} would not appear in the email. Move it, or fix the HTML: "
            "close the comment, style sheet, tag or quotation mark before it.",
            name=name,
        )
    return message
