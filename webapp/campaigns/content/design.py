"""Build the HTML and the plain-text body of an email.

Plain text gets the shop's HTML design, custom HTML gets a plain-text alternative.

Until the end, placeholders are replaced by markers (`webapp.mail.template`), which cannot be parsed as markup.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from typing import NamedTuple

import css_inline
from flask import current_app
from markupsafe import Markup, escape

from webapp.mail import html_depth, locales
from webapp.mail.template import (
    MARKER,
    MARKER_OPEN,
    Placeholder,
    TemplateParts,
    insert_markers,
    restore_placeholders,
)
from webapp.shop.colours import DARK_BACKGROUND, build_palette
from webapp.shop.models import ShopValues

# Longer codes would wrap in the large font of the 600 pixel layout.
LONG_CODE_LENGTH = 22
# Figure spaces, each with a combining mark so that mail clients do not collapse them.
PREHEADER_PADDING = "\u2007\u034f" * 40
_URL = re.compile(r"https?://[^\s<>\"']*[^\s<>\"'.,;:!?)]")
# Remote style sheets are not loaded: that would be a request to any URL in the HTML (SSRF).
_CSS_INLINER = css_inline.CSSInliner(keep_at_rules=True, load_remote_stylesheets=False)


class DesignBlock(NamedTuple):
    """A paragraph, or the highlighted discount, code or link button."""

    kind: str
    html: Markup


def render_designed_html(
    text: TemplateParts, subject: TemplateParts, shop: ShopValues, code_length: int = 0
) -> TemplateParts:
    """Render the HTML body of a plain text in the shop's design.

    A line that consists only of a code, a link or a discount becomes a highlighted block.

    :param code_length: characters of the longest code a recipient may get; a long code gets a smaller font, so that it
        stays on one line.
    """
    placeholders: list[Placeholder] = []
    text_html, subject_html = insert_markers(text, placeholders), insert_markers(subject, placeholders)
    blocks = _split_into_blocks(text_html, placeholders)
    body = current_app.jinja_env.get_template("email/designed.html").render(
        blocks=blocks,
        is_long=code_length > LONG_CODE_LENGTH,
        preheader=_find_preheader(text_html, placeholders),
        preheader_padding=PREHEADER_PADDING,
        subject=subject_html,
        shop=shop,
        light=build_palette(shop.colour),
        dark=build_palette(shop.colour, DARK_BACKGROUND),
        dark_sheet=DARK_BACKGROUND,
        is_right_to_left=locales.is_locale_right_to_left(shop.locale),
        unsubscribe=insert_markers((Placeholder("unsubscribe"),), placeholders),
    )
    return restore_placeholders(_strip_indentation(_inline_css(body)), placeholders)


def finish_custom_html(source: TemplateParts, shop: ShopValues) -> TemplateParts:
    """Inline the CSS of custom HTML; add a footer if it has no unsubscribe link."""
    html_with_markers, placeholders = finish_html_with_markers(source, shop)
    return restore_placeholders(html_with_markers, placeholders)


def finish_html_with_markers(source: TemplateParts, shop: ShopValues) -> tuple[str, list[Placeholder]]:
    """Finish custom HTML as `finish_custom_html` does, and keep the markers.

    Returns the HTML with markers, and the placeholder of each marker number.
    """
    placeholders: list[Placeholder] = []
    html_with_markers = insert_markers(source, placeholders)
    if not any(placeholder.name == "unsubscribe" for placeholder in placeholders):
        footer = current_app.jinja_env.get_template("email/footer.html").render(
            unsubscribe=insert_markers((Placeholder("unsubscribe"),), placeholders), shop=shop
        )
        body_end = html_with_markers.lower().rfind("</body>")
        position = body_end if body_end >= 0 else len(html_with_markers)
        html_with_markers = html_with_markers[:position] + footer + html_with_markers[position:]
    return _inline_css(html_with_markers), placeholders


def add_text_footer(text: TemplateParts, shop: ShopValues) -> TemplateParts:
    """Add the reason for the email, an unsubscribe link and the postal address.

    A text that has its own unsubscribe link stays as it is.
    """
    if any(isinstance(part, Placeholder) and part.name == "unsubscribe" for part in text):
        return text
    address = f"\n\n{shop.address}\n" if shop.address else "\n"
    return (*text, f"\n\n-- \n{shop.footer_reason}\n{shop.unsubscribe_words}: ", Placeholder("unsubscribe"), address)


def convert_html_to_text(source: TemplateParts) -> TemplateParts:
    """Convert an HTML body to plain text."""
    placeholders: list[Placeholder] = []
    extractor = _TextExtractor()
    extractor.feed(insert_markers(source, placeholders))
    extractor.close()
    return restore_placeholders(extractor.get_text(), placeholders)


def _split_into_blocks(text: str, placeholders: Sequence[Placeholder]) -> list[DesignBlock]:
    blocks = []
    for paragraph in re.split(r"\n[ \t]*\n", text.replace("\r\n", "\n").strip()):
        lines = paragraph.strip("\n")
        if lines.strip():
            kind = _classify_block(lines.strip(), placeholders)
            markup = _convert_lines_to_html(lines) if kind == "text" else Markup(escape(lines.strip()))  # noqa: S704
            blocks.append(DesignBlock(kind, markup))
    return blocks


def _find_preheader(text: str, placeholders: Sequence[Placeholder]) -> str:
    """Return the text that mail clients show beside the subject.

    This is the first paragraph that is more than a greeting.
    """
    for paragraph in re.split(r"\n[ \t]*\n", text.replace("\r\n", "\n").strip()):
        line = " ".join(paragraph.split())
        names = {placeholders[int(number)].name for number in MARKER.findall(line)}
        has_text = MARKER.sub("", line).strip() and _classify_block(line, placeholders) == "text"
        if has_text and not line.endswith((",", "،", "、")) and not names & {"link", "unsubscribe"}:
            return line
    return ""


def _strip_indentation(source: str) -> str:
    """Remove the indentation of the template, which makes up a third of the HTML."""
    return re.sub(r">\s*\n\s*<", ">\n<", re.sub(r"\n[ \t]+", "\n", source))


def _classify_block(line: str, placeholders: Sequence[Placeholder]) -> str:
    marker = MARKER.search(line)
    if marker is None or "\n" in line:
        return "text"
    name, rest = placeholders[int(marker[1])].name, MARKER.sub("", line, count=1).strip()
    if not rest:
        return {"offer.code": "code", "link": "button", "offer.discount": "discount"}.get(name, "text")
    return "discount" if name == "offer.discount" and len(rest) <= 12 and line.startswith(MARKER_OPEN) else "text"


def _convert_lines_to_html(text: str) -> Markup:
    lines = []
    for line in text.split("\n"):
        pieces, end = [], 0
        for match in _URL.finditer(line):
            url = html.escape(match[0])
            pieces += [html.escape(line[end : match.start()]), f'<a href="{url}">{url}</a>']
            end = match.end()
        lines.append("".join([*pieces, html.escape(line[end:])]))
    return Markup("<br>\n".join(lines))  # noqa: S704


def _inline_css(source: str) -> str:
    """Move style rules to `style` attributes; an invalid style sheet stays.

    :raises HtmlTooDeep: before the inliner runs, whose recursion would crash the whole process.
    """
    html_depth.check_html_depth(source)
    try:
        inlined = _CSS_INLINER.inline(source)
    except css_inline.InlineError:
        inlined = source
    return inlined if inlined.lstrip().lower().startswith("<!doctype") else f"<!DOCTYPE html>\n{inlined}"


class _TextExtractor(HTMLParser):
    """Extract text from HTML, with links as URLs and without styles and scripts.

    It parses the HTML as it was written: finished HTML contains the footer, and the text gets its own.
    """

    BLOCK_ELEMENTS = re.compile(
        "address|article|blockquote|body|center|d[dlt]|div|footer|form|h[1-6r]|header|li|main|[ou]l|p|pre|"
        "section|table|t[dhr]"
    )
    SKIPPED_ELEMENTS = frozenset(("style", "script", "head", "title", "template"))

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.pieces: list[str] = []
        self.skip_depth = 0
        self.open_links: list[tuple[str, int]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        if tag in self.SKIPPED_ELEMENTS:
            self.skip_depth += 1
        elif tag == "br":
            self.pieces.append("\n")
        elif self.BLOCK_ELEMENTS.fullmatch(tag):
            self.pieces.append({"li": "\n\n- ", "td": "\n", "th": "\n"}.get(tag, "\n\n"))
        elif tag == "a":
            self.open_links.append((attributes.get("href") or "", len(self.pieces)))
        elif tag == "img" and attributes.get("alt"):
            self.pieces.append(str(attributes["alt"]))

    def handle_endtag(self, tag: str) -> None:
        if tag in self.SKIPPED_ELEMENTS:
            self.skip_depth = max(0, self.skip_depth - 1)
        elif self.BLOCK_ELEMENTS.fullmatch(tag):
            self.pieces.append("\n\n")
        elif tag == "a" and self.open_links:
            url, start = self.open_links.pop()
            label = "".join(self.pieces[start:]).strip()
            if url and url != label and not url.startswith("#"):
                self.pieces.append(f": {url} " if label else url)

    def handle_data(self, data: str) -> None:
        if not self.skip_depth:
            self.pieces.append(re.sub(r"\s+", " ", data))

    def get_text(self) -> str:
        """Return the text of the HTML that was fed, with at most one blank line in a row."""
        lines = [re.sub(r"[ \t\u00a0]+", " ", line).strip() for line in "".join(self.pieces).split("\n")]
        text = re.sub(r"\n{3,}", "\n\n", "\n".join(lines))
        # A list item that begins with a block, such as a paragraph, begins on the line of its dash.
        return re.sub(r"(?m)^-\n\n", "- ", text).strip() + "\n"
