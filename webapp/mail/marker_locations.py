"""Locate the markers of placeholders in the finished HTML of an email."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser

from flask_babel import lazy_gettext as _l

from webapp.mail.template import MARKER, MARKER_OPEN

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


@dataclass(frozen=True)
class MarkerLocations:
    """The numbers of the markers by their location in an HTML document.

    :ivar found: markers in places where a value has an effect.
    :ivar text: markers in text that is displayed in the email.
    :ivar links: markers at the start of the URL of a link.
    :ivar hidden: where a marker has no effect or does harm, in words.
    """

    found: set[int] = field(default_factory=set)
    text: set[int] = field(default_factory=set)
    links: set[int] = field(default_factory=set)
    hidden: dict[int, str] = field(default_factory=dict)


def locate_markers(html_with_markers: str) -> MarkerLocations:
    """Parse a document and return the locations of its markers."""
    parser = _MarkerParser()
    parser.feed(html_with_markers)
    parser.close()
    return parser.locations


class _MarkerParser(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.locations = MarkerLocations()
        self.open_hidden_elements: list[str] = []
        self.is_in_title = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._record_hidden(tag, _IN_TAG_NAME)
        for name, value in attrs:
            self._record_hidden(name, _IN_ATTRIBUTE_NAME)
            self._record_attribute(tag, name, value or "")
        if tag in _HIDDEN_ELEMENTS:
            self.open_hidden_elements.append(tag)
        self.is_in_title |= tag == "title"

    def _record_attribute(self, tag: str, name: str, value: str) -> None:
        numbers = _marker_numbers(value)
        self.locations.found.update(numbers)
        if tag in ("a", "area") and name == "href" and not self.open_hidden_elements:
            if value.strip().startswith(MARKER_OPEN):
                self.locations.links.update(numbers)
        elif name.startswith("on"):
            self._record_hidden(value, _HIDDEN_ELEMENTS["script"])

    def handle_endtag(self, tag: str) -> None:
        self._record_hidden(tag, _IN_TAG_NAME)
        if tag in self.open_hidden_elements:
            del self.open_hidden_elements[self.open_hidden_elements.index(tag) :]
        self.is_in_title &= tag != "title"

    def handle_data(self, data: str) -> None:
        if self.open_hidden_elements:
            self._record_hidden(data, _HIDDEN_ELEMENTS[self.open_hidden_elements[-1]])
            return
        self.locations.found.update(_marker_numbers(data))
        if not self.is_in_title:
            self.locations.text.update(_marker_numbers(data))

    def handle_comment(self, data: str) -> None:
        # Outlook interprets such conditional comments.
        if data.startswith("[if "):
            self.locations.found.update(_marker_numbers(data))
        else:
            self._record_hidden(data, _IN_COMMENT)

    def handle_decl(self, decl: str) -> None:
        self._record_hidden(decl, _IN_DECLARATION)

    def handle_pi(self, data: str) -> None:
        self._record_hidden(data, _IN_DECLARATION)

    def unknown_decl(self, data: str) -> None:
        self._record_hidden(data, _IN_DECLARATION)

    def _record_hidden(self, text: str, location: str) -> None:
        self.locations.hidden.update(dict.fromkeys(_marker_numbers(text), location))


def _marker_numbers(text: str) -> set[int]:
    return {int(number) for number in MARKER.findall(text)}
