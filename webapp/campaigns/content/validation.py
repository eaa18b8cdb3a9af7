"""Validate that an email can be sent as it is written.

Errors are found when it is saved, not when it is sent.
"""

from __future__ import annotations

import re
import unicodedata
from html.parser import HTMLParser

from flask_babel import gettext as _
from flask_babel import lazy_gettext as _l

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
from webapp.mail.template import MARKER_CLOSE, MARKER_OPEN, Placeholder
from webapp.shop import queries as shop_queries

_MARKER = re.compile(f"{MARKER_OPEN}([0-9]+){MARKER_CLOSE}")
_STYLE_TAG = re.compile(r"(?i)<style\b|</style\s*>")
# The text of these elements is not displayed, except for a title that some mail clients show.
_HIDDEN_ELEMENTS = {
    "script": _l("a script"),
    "style": _l("a style sheet"),
    "template": _l("a template that is never shown"),
    "textarea": _l("a text field"),
    "select": _l("a selection list"),
    "option": _l("a selection list"),
    "iframe": _l("a frame"),
    "noscript": _l("an element that is never shown"),
    "object": _l("an element that is never shown"),
}
# Other places in which a placeholder has no effect. Lazy, because there may be one for each tag of the HTML.
_IN_TAG_NAME = _l("the name of a tag")
_IN_ATTRIBUTE_NAME = _l("the name of an attribute")
_IN_COMMENT = _l("a comment")
_IN_DECLARATION = _l("a declaration")

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
    locator = _MarkerLocator()
    locator.feed(html_with_markers)
    locator.close()
    content_count = sum(isinstance(part, Placeholder) for part in source)
    for number, placeholder in enumerate(placeholders):
        location = locator.hidden_markers.get(number)
        if number in locator.found_markers and location is None:
            continue
        name = placeholder.name if number < content_count else None
        return "html_broken", _lost_placeholder_message(name, location)
    unsubscribe_links = {number for number, placeholder in enumerate(placeholders) if placeholder.name == "unsubscribe"}
    if not unsubscribe_links & locator.visible_markers:
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


class _MarkerLocator(HTMLParser):
    """Finds the locations of the markers of placeholders in finished HTML."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found_markers: set[int] = set()
        # The locations of markers where they have no effect or do harm.
        self.hidden_markers: dict[int, str] = {}
        # Markers that a reader can see or click.
        self.visible_markers: set[int] = set()
        self.open_hidden_elements: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._record_hidden(tag, _IN_TAG_NAME)
        for name, value in attrs:
            self._record_hidden(name, _IN_ATTRIBUTE_NAME)
            self.found_markers |= _marker_numbers(value or "")
            if tag in ("a", "area") and name == "href" and not self.open_hidden_elements:
                if (value or "").strip().startswith(MARKER_OPEN):
                    self.visible_markers |= _marker_numbers(value or "")
            elif name.startswith("on"):
                self._record_hidden(value or "", _HIDDEN_ELEMENTS["script"])
        if tag in _HIDDEN_ELEMENTS:
            self.open_hidden_elements.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        self._record_hidden(tag, _IN_TAG_NAME)
        if tag in self.open_hidden_elements:
            del self.open_hidden_elements[self.open_hidden_elements.index(tag) :]

    def handle_data(self, data: str) -> None:
        if self.open_hidden_elements:
            self._record_hidden(data, _HIDDEN_ELEMENTS[self.open_hidden_elements[-1]])
        else:
            numbers = _marker_numbers(data)
            self.found_markers |= numbers
            self.visible_markers |= numbers

    def handle_comment(self, data: str) -> None:
        # Outlook interprets such conditional comments.
        if data.startswith("[if "):
            self.found_markers |= _marker_numbers(data)
        else:
            self._record_hidden(data, _IN_COMMENT)

    def handle_decl(self, decl: str) -> None:
        self._record_hidden(decl, _IN_DECLARATION)

    def handle_pi(self, data: str) -> None:
        self._record_hidden(data, _IN_DECLARATION)

    def unknown_decl(self, data: str) -> None:
        self._record_hidden(data, _IN_DECLARATION)

    def _record_hidden(self, text: str, location: str) -> None:
        for number in _marker_numbers(text):
            self.hidden_markers[number] = location


def _marker_numbers(text: str) -> set[int]:
    return {int(number) for number in _MARKER.findall(text)}
