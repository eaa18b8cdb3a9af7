"""Limit the nesting depth of HTML.

The CSS inliner recurses on the native stack: a few thousand levels crash the process, with everything else it was
doing.
"""

from __future__ import annotations

import re
from html.parser import HTMLParser

from flask_babel import gettext as _

MAX_HTML_DEPTH = 200
# Start tags in comments and similar places, which another parser may parse as elements; thousands would be too deep.
MAX_UNPARSED_TAGS = 500
# Elements without an end tag.
_VOID_ELEMENTS = frozenset(
    [
        "area",
        "base",
        "br",
        "col",
        "embed",
        "frame",
        "hr",
        "image",
        "img",
        "input",
        "keygen",
        "link",
        "meta",
        "param",
        "source",
        "track",
        "wbr",
    ]
)
# Their end tag closes elements left open in them (HTML, 13.1.2.4); that of others, such as <b>, does not.
_CLOSES_OPEN_CHILDREN = frozenset(
    [
        "address",
        "article",
        "aside",
        "blockquote",
        "center",
        "div",
        "dl",
        "fieldset",
        "figure",
        "footer",
        "form",
        "header",
        "main",
        "nav",
        "ol",
        "section",
        "table",
        "tbody",
        "td",
        "tfoot",
        "th",
        "thead",
        "tr",
        "ul",
    ]
)
_CLOSED_BY_CELL = frozenset(["p", "td", "th"])
_CLOSED_BY_ROW = _CLOSED_BY_CELL | {"tr"}
_CLOSED_BY_TERM = frozenset(["p", "dt", "dd"])
_CLOSED_BY_ROW_GROUP = _CLOSED_BY_ROW | {"tbody", "thead", "tfoot"}
# The open elements that are closed by a start tag.
_IMPLIED_END_TAGS = {
    "p": frozenset(["p"]),
    "li": frozenset(["p", "li"]),
    "dt": _CLOSED_BY_TERM,
    "dd": _CLOSED_BY_TERM,
    "td": _CLOSED_BY_CELL,
    "th": _CLOSED_BY_CELL,
    "tr": _CLOSED_BY_ROW,
    "tbody": _CLOSED_BY_ROW_GROUP,
    "thead": _CLOSED_BY_ROW_GROUP,
    "tfoot": _CLOSED_BY_ROW_GROUP,
}
# Elements with text content only; tags inside them are text.
_RAW_TEXT_ELEMENTS = frozenset(["iframe", "noembed", "noframes", "plaintext", "textarea", "title", "xmp"])
# The end of a comment for some parsers only.
_MALFORMED_COMMENT_END = re.compile(r"--(?:!|\s)\s*>")
_START_TAG = re.compile(r"<[A-Za-z]")


class HtmlTooDeep(ValueError):
    """HTML that could crash a parser.

    The message says what the author has to change.
    """


def check_html_depth(source: str) -> None:
    """Check that HTML can be parsed safely.

    :raises HtmlTooDeep: when it is nested too deeply, or the depth cannot be determined reliably.
    """
    # The usual case: too few tags to be nested too deeply.
    tags = sum(1 for _ in _START_TAG.finditer(source))
    if tags <= MAX_HTML_DEPTH:
        return
    if _MALFORMED_COMMENT_END.search(source):
        raise HtmlTooDeep(_("A comment is not closed with “-->”. Correct the HTML."))
    # Python's parser takes quadratic time for many tags that are not closed.
    if source.count("<", source.rfind(">") + 1) > MAX_HTML_DEPTH:
        raise HtmlTooDeep(_("Many tags at the end of the HTML are not closed. Correct the HTML."))
    parser = _DepthParser()
    parser.feed(source)
    parser.close()
    if tags - parser.start_tag_count > MAX_UNPARSED_TAGS:
        raise HtmlTooDeep(
            _("The HTML has more than %(max)s tags in comments. Remove some of them.", max=MAX_UNPARSED_TAGS)
        )


class _DepthParser(HTMLParser):
    """Counts open elements.

    It may overcount: an element left open in a wrong place stays open. It parses separately from the other parsers of
    emails, because it runs before the CSS inliner and parses style sheets as elements.
    """

    # A style sheet within SVG is parsed as elements; here all style sheets are.
    CDATA_CONTENT_ELEMENTS = ()  # type: ignore[misc]

    def __init__(self) -> None:
        super().__init__(convert_charrefs=False)
        self.open_elements: list[str] = []
        self.start_tag_count = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.start_tag_count += 1
        if tag in _VOID_ELEMENTS and "svg" not in self.open_elements and "math" not in self.open_elements:
            return
        while self.open_elements and self.open_elements[-1] in _IMPLIED_END_TAGS.get(tag, ()):
            self.open_elements.pop()
        self.open_elements.append(tag)
        if len(self.open_elements) > MAX_HTML_DEPTH:
            raise HtmlTooDeep(
                _(
                    "Elements are nested more than %(max)s levels deep, or that many elements are not closed. "
                    "Close them, or remove some of them.",
                    max=MAX_HTML_DEPTH,
                )
            )

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        # <div/> is not closed in HTML, only within SVG or MathML.
        self.handle_starttag(tag, attrs)
        if tag not in _VOID_ELEMENTS and ("svg" in self.open_elements or "math" in self.open_elements):
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in _RAW_TEXT_ELEMENTS and not _RAW_TEXT_ELEMENTS.isdisjoint(self.open_elements):
            return
        index = len(self.open_elements) - 1
        while (
            tag in _CLOSES_OPEN_CHILDREN
            and index >= 0
            and self.open_elements[index] != tag
            and self.open_elements[index] in _IMPLIED_END_TAGS
        ):
            index -= 1
        if index >= 0 and self.open_elements[index] == tag:
            del self.open_elements[index:]
