"""How deep the elements of HTML are nested. What moves style sheets works its way down on the stack of the process,
and a few thousand levels end the process itself, with everything else that it was doing."""

from __future__ import annotations

import re
from html.parser import HTMLParser

HTML_DEPTH_MAX = 200
# Tags in comments and the like, as one reader sees it and another may not. Some thousand would be too deep.
UNPARSED_TAGS_MAX = 500
# Never have an end of their own.
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
# Their end closes what may be left open in them (HTML, 13.1.2.4); that of others, as of <b>, does not.
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
# Which open elements end where this one begins.
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
# What stands in these is text, also what looks like an end.
_RAW_TEXT_ELEMENTS = frozenset(["iframe", "noembed", "noframes", "plaintext", "textarea", "title", "xmp"])
# Ends a comment for some readers only.
_MALFORMED_COMMENT_END = re.compile(r"--(?:!|\s)\s*>")
_START_TAG = re.compile(r"<[A-Za-z]")


class HtmlTooDeep(ValueError):
    """HTML that would harm whatever reads it. The message is for the writer."""


def check_html_depth(source: str) -> None:
    """Nothing, when the HTML can be read safely.

    :raises TooDeep: with what to do.
    """
    # As most mails are: too few tags to be nested too deep.
    tags = sum(1 for _ in _START_TAG.finditer(source))
    if tags <= HTML_DEPTH_MAX:
        return
    if _MALFORMED_COMMENT_END.search(source):
        raise HtmlTooDeep("A comment does not end with “-->”, but nearly so. Please mend the HTML.")
    # Python's reader looks for the end of each tag that has none again and again.
    if source.count("<", source.rfind(">") + 1) > HTML_DEPTH_MAX:
        raise HtmlTooDeep("Many tags at its end are not closed. Please mend the HTML.")
    reader = _DepthParser()
    reader.feed(source)
    reader.close()
    if tags - reader.start_tag_count > UNPARSED_TAGS_MAX:
        raise HtmlTooDeep(f"More than {UNPARSED_TAGS_MAX} tags are in comments. Please take some away.")


class _DepthParser(HTMLParser):
    """Counts what is open. It rather counts too much: what is left open in the wrong place stays open."""

    # A style sheet within a drawing is read as elements; here all are.
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
        if len(self.open_elements) > HTML_DEPTH_MAX:
            raise HtmlTooDeep(
                f"Elements are nested more than {HTML_DEPTH_MAX} deep, or as many are never closed. "
                "Please close them, or take some away."
            )

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        # <div/> is not closed in HTML, only in a drawing.
        self.handle_starttag(tag, attrs)
        if tag not in _VOID_ELEMENTS and ("svg" in self.open_elements or "math" in self.open_elements):
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in _RAW_TEXT_ELEMENTS and not _RAW_TEXT_ELEMENTS.isdisjoint(self.open_elements):
            return
        at = len(self.open_elements) - 1
        while (
            tag in _CLOSES_OPEN_CHILDREN
            and at >= 0
            and self.open_elements[at] != tag
            and self.open_elements[at] in _IMPLIED_END_TAGS
        ):
            at -= 1
        if at >= 0 and self.open_elements[at] == tag:
            del self.open_elements[at:]
