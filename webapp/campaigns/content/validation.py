"""Whether a mail can be sent as it was written. What can't be is refused when it is saved, not when it is sent."""

from __future__ import annotations

import re
import unicodedata
from html.parser import HTMLParser

from webapp.campaigns.content import design
from webapp.campaigns.content.placeholders import (
    BODY_MAX,
    SUBJECT_MAX,
    EmailContent,
    PlaceholderError,
    format_placeholder_list,
    parse_template,
)
from webapp.core.errors import FieldError, InvalidInput
from webapp.mail import html_depth
from webapp.mail.template import MARKER_CLOSE, MARKER_OPEN, Placeholder
from webapp.shop import queries as shop_queries

_MARKER = re.compile(f"{MARKER_OPEN}([0-9]+){MARKER_CLOSE}")
_STYLE_TAG = re.compile(r"(?i)<style\b|</style\s*>")
# Nobody reads what stands in these, except for a title that some programs show.
_HIDDEN_ELEMENTS = {
    "script": "a script",
    "style": "a style sheet",
    "template": "a template that is never shown",
    "textarea": "a field for typing",
    "select": "a list to choose from",
    "option": "a list to choose from",
    "iframe": "a frame",
    "noscript": "an element that is never shown",
    "object": "an element that is never shown",
}
_UNCLOSED_HINT = "Close the comment, style sheet, tag or quotation mark before it."

ContentError = tuple[str, str]


def validate_content(mail: EmailContent, within: str = "") -> None:
    """Nothing, when the mail can be sent as it is.

    :param within: where the mail stands in the caller's input: "mail" makes fields of "mail.subject" and so on.
    :raises Invalid: with one error per field.
    """
    errors = []
    for field, value in (("subject", mail.subject), ("text", mail.text), ("html", mail.html)):
        found = _find_error(field, value)
        if found:
            errors.append(FieldError(f"{within}.{field}" if within else field, *found))
    if errors:
        raise InvalidInput(*errors)


def _find_error(field: str, value: str) -> ContentError | None:
    """(key, sentence) of the first thing wrong with a field."""
    if field == "subject":
        if "\n" in value or "\r" in value:
            return "line_break", "The subject must be one line."
        if len(value) > SUBJECT_MAX:
            return "too_long", f"The subject may have up to {SUBJECT_MAX} characters; this has {len(value):,}."
    size = len(value.encode("utf-8", "surrogatepass"))
    if size > BODY_MAX:
        return (
            "too_large",
            f"This is larger than {BODY_MAX // 1024} kB (it has {size // 1024:,} kB); mailboxes would cut it off.",
        )
    if any(unicodedata.category(c) in ("Cc", "Cs", "Co") and c not in "\t\r\n" for c in value):
        return "bad_character", "There are characters in it that can't be mailed. Please type it anew."
    try:
        parse_template(value)
    except PlaceholderError as error:
        return "placeholder_unknown", str(error)
    return _find_unopened_braces(value, field == "html") or (
        _find_html_error(value) if field == "html" and value.strip() else None
    )


def _find_unopened_braces(value: str, is_html: bool) -> ContentError | None:
    """Braces that close what was never opened. In style sheets they are usual."""
    left = "".join(
        part for part in parse_template(strip_style_elements(value) if is_html else value) if isinstance(part, str)
    )
    at = left.find("}}")
    if at < 0:
        return None
    said = " ".join(left[max(0, at - 25) : at + 2].split())
    return "placeholder_unknown", f"“{said}” is not opened with {{{{. These can be used: {format_placeholder_list()}."


def strip_style_elements(source: str) -> str:
    """HTML without its style sheets; one that is not closed stays."""
    kept, end, start = [], 0, None
    for found in _STYLE_TAG.finditer(source):
        if found[0].startswith("</") and start is not None:
            kept.append(source[end:start])
            end, start = found.end(), None
        elif not found[0].startswith("</") and start is None:
            start = found.start()
    return "".join([*kept, source[end:]])


def _find_html_error(value: str) -> ContentError | None:
    """What is lost, or ends up where nobody reads it, once the HTML has been read as a mail program reads it."""
    source = parse_template(value)
    try:
        marked, slots = design.finish_html_with_markers(source, shop_queries.default_shop())
    except html_depth.HtmlTooDeep as error:
        return "html_broken", str(error)
    reader = _MarkerLocator()
    reader.feed(marked)
    reader.close()
    own = sum(isinstance(part, Placeholder) for part in source)
    for number, slot in enumerate(slots):
        place = reader.hidden_markers.get(number)
        if number in reader.found_markers and place is None:
            continue
        where = f"ends up in {place}" if place else "gets lost"
        if number >= own:
            return "html_broken", f"The link that ends the mails, which we put at the end, {where}. {_UNCLOSED_HINT}"
        return (
            "html_broken",
            f"The placeholder {{{{ {slot.name} }}}} {where}. Move it, or mend the HTML: {_UNCLOSED_HINT}",
        )
    ways_out = {number for number, slot in enumerate(slots) if slot.name == "unsubscribe"}
    if not ways_out & reader.visible_markers:
        return "html_broken", "Nobody could press the link that ends the mails: give {{ unsubscribe }} to an <a href>."
    return None


class _MarkerLocator(HTMLParser):
    """Where in finished HTML the marks of placeholders stand."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found_markers: set[int] = set()
        # Where a mark would do nothing, or harm.
        self.hidden_markers: dict[int, str] = {}
        # Marks that a reader can see or press.
        self.visible_markers: set[int] = set()
        self.open_hidden_elements: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._record_hidden(tag, "the name of a tag")
        for name, value in attrs:
            self._record_hidden(name, "the name of an attribute")
            self.found_markers |= _marker_numbers(value or "")
            if tag in ("a", "area") and name == "href" and not self.open_hidden_elements:
                self.visible_markers |= {
                    int(n) for n in _MARKER.findall(value or "") if (value or "").strip().startswith(MARKER_OPEN)
                }
            elif name.startswith("on"):
                self._record_hidden(value or "", "a script")
        if tag in _HIDDEN_ELEMENTS:
            self.open_hidden_elements.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        self._record_hidden(tag, "the name of a tag")
        if tag in self.open_hidden_elements:
            del self.open_hidden_elements[self.open_hidden_elements.index(tag) :]

    def handle_data(self, data: str) -> None:
        if self.open_hidden_elements:
            self._record_hidden(data, _HIDDEN_ELEMENTS[self.open_hidden_elements[-1]])
        else:
            found = _marker_numbers(data)
            self.found_markers |= found
            self.visible_markers |= found

    def handle_comment(self, data: str) -> None:
        # Outlook reads those that begin like this.
        if data.startswith("[if "):
            self.found_markers |= _marker_numbers(data)
        else:
            self._record_hidden(data, "a comment")

    def handle_decl(self, decl: str) -> None:
        self._record_hidden(decl, "a declaration")

    def handle_pi(self, data: str) -> None:
        self._record_hidden(data, "a declaration")

    def unknown_decl(self, data: str) -> None:
        self._record_hidden(data, "a declaration")

    def _record_hidden(self, text: str, place: str) -> None:
        for number in _marker_numbers(text):
            self.hidden_markers[number] = place


def _marker_numbers(text: str) -> set[int]:
    return {int(number) for number in _MARKER.findall(text)}
