"""The two bodies of a mail from what staff gave: the shop's own design round a plain text, or a text out of HTML.

Placeholders are marks here (wording.mark), so that nothing in them can be taken for markup.
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
    MARKER_CLOSE,
    MARKER_OPEN,
    Placeholder,
    TemplateParts,
    insert_markers,
    restore_placeholders,
)
from webapp.shop.colours import DARK_BACKGROUND, build_palette
from webapp.shop.models import ShopValues

# Longer codes would be broken on a sheet of 600 pixels when written large.
LONG_CODE_LENGTH = 22
# Figure spaces that a combining mark keeps from being taken for one.
PREHEADER_PADDING = "\u2007\u034f" * 40
_URL = re.compile(r"https?://[^\s<>\"']*[^\s<>\"'.,;:!?)]")
_MARKER = re.compile(f"{MARKER_OPEN}([0-9]+){MARKER_CLOSE}")
# Style sheets of other servers are not fetched: that would be a request to wherever somebody typed.
_CSS_INLINER = css_inline.CSSInliner(keep_at_rules=True, load_remote_stylesheets=False)


class DesignBlock(NamedTuple):
    """A paragraph, or one of the things that stand out: the discount, the code, the button to the personal page."""

    kind: str
    html: Markup


def render_designed_html(
    text: TemplateParts, subject: TemplateParts, shop: ShopValues, code_length: int = 0
) -> TemplateParts:
    """The HTML that goes with a plain text: a line that is only a code, a link or a discount becomes what it means.

    :param code_length: of the longest code a recipient may get; a long one is written smaller, so that it stays on a
        line.
    """
    slots: list[Placeholder] = []
    text_html, subject_html = _append_markers(text, slots), _append_markers(subject, slots)
    slots.append(Placeholder("unsubscribe"))
    blocks = _split_into_blocks(text_html, slots)
    body = current_app.jinja_env.get_template("email/designed.html").render(
        blocks=blocks,
        is_long=code_length > LONG_CODE_LENGTH,
        preheader=_find_preheader(text_html, slots),
        blanks=PREHEADER_PADDING,
        subject=subject_html,
        shop=shop,
        light=build_palette(shop.colour),
        dark=build_palette(shop.colour, DARK_BACKGROUND),
        dark_sheet=DARK_BACKGROUND,
        is_right_to_left=locales.is_locale_right_to_left(shop.locale),
        unsubscribe=f"{MARKER_OPEN}{len(slots) - 1}{MARKER_CLOSE}",
    )
    return restore_placeholders(_strip_indentation(_inline_css(body)), slots)


def finish_custom_html(source: TemplateParts, shop: ShopValues) -> TemplateParts:
    """Staff's own HTML, with its style sheet moved to where mail programs look, and a way to unsubscribe."""
    marked, slots = finish_html_with_markers(source, shop)
    return restore_placeholders(marked, slots)


def finish_html_with_markers(source: TemplateParts, shop: ShopValues) -> tuple[str, list[Placeholder]]:
    """`finished`, with marks where the placeholders are, and what the marks mean."""
    marked, slots = insert_markers(source)
    if not any(slot.name == "unsubscribe" for slot in slots):
        slots.append(Placeholder("unsubscribe"))
        foot = current_app.jinja_env.get_template("email/foot.html").render(
            unsubscribe=f"{MARKER_OPEN}{len(slots) - 1}{MARKER_CLOSE}", shop=shop
        )
        at = marked.lower().rfind("</body>")
        marked = marked[:at] + foot + marked[at:] if at >= 0 else marked + foot
    return _inline_css(marked), slots


def add_text_footer(text: TemplateParts, shop: ShopValues) -> TemplateParts:
    """The plain text with why one gets it and a way to unsubscribe, unless it has one, and the postal address."""
    if any(isinstance(part, Placeholder) and part.name == "unsubscribe" for part in text):
        return text
    before = "".join(f"{line}\n" for line in (shop.reason,) if line)
    after = f"\n\n{shop.address}\n" if shop.address else "\n"
    return (*text, f"\n\n-- \n{before}{shop.unsubscribe_words}: ", Placeholder("unsubscribe"), after)


def convert_html_to_text(source: TemplateParts) -> TemplateParts:
    """What an HTML mail says, as plain text."""
    marked, slots = insert_markers(source)
    reader = _TextExtractor()
    reader.feed(marked)
    reader.close()
    return restore_placeholders(reader.get_text(), slots)


def _append_markers(parts: TemplateParts, slots: list[Placeholder]) -> str:
    """Marks that go on counting from the slots there are."""
    out = []
    for part in parts:
        if isinstance(part, str):
            out.append(part)
        else:
            slots.append(part)
            out.append(f"{MARKER_OPEN}{len(slots) - 1}{MARKER_CLOSE}")
    return "".join(out)


def _split_into_blocks(text: str, slots: Sequence[Placeholder]) -> list[DesignBlock]:
    blocks = []
    for paragraph in re.split(r"\n[ \t]*\n", text.replace("\r\n", "\n").strip()):
        lines = paragraph.strip("\n")
        if lines.strip():
            kind = _classify_block(lines.strip(), slots)
            html = _convert_lines_to_html(lines) if kind == "text" else Markup(escape(lines.strip()))  # noqa: S704
            blocks.append(DesignBlock(kind, html))
    return blocks


def _find_preheader(text: str, slots: Sequence[Placeholder]) -> str:
    """What a mailbox shows beside the subject: the first paragraph that is more than a greeting."""
    for paragraph in re.split(r"\n[ \t]*\n", text.replace("\r\n", "\n").strip()):
        line = " ".join(paragraph.split())
        names = {slots[int(number)].name for number in _MARKER.findall(line)}
        says_something = _MARKER.sub("", line).strip() and _classify_block(line, slots) == "text"
        if says_something and not line.endswith((",", "،", "、")) and not names & {"link", "unsubscribe"}:
            return line
    return ""


def _strip_indentation(source: str) -> str:
    """Without the blanks that only indent the template: they cost a third of the mail."""
    return re.sub(r">\s*\n\s*<", ">\n<", re.sub(r"\n[ \t]+", "\n", source))


def _classify_block(line: str, slots: Sequence[Placeholder]) -> str:
    found = _MARKER.search(line)
    if found is None or "\n" in line:
        return "text"
    name, rest = slots[int(found[1])].name, _MARKER.sub("", line, count=1).strip()
    if not rest:
        return {"offer.code": "code", "link": "button", "offer.discount": "discount"}.get(name, "text")
    return "discount" if name == "offer.discount" and len(rest) <= 12 and line.startswith(MARKER_OPEN) else "text"


def _convert_lines_to_html(text: str) -> Markup:
    lines = []
    for line in text.split("\n"):
        pieces, end = [], 0
        for found in _URL.finditer(line):
            address = html.escape(found[0])
            pieces += [html.escape(line[end : found.start()]), f'<a href="{address}">{address}</a>']
            end = found.end()
        lines.append("".join([*pieces, html.escape(line[end:])]))
    return Markup("<br>\n".join(lines))  # noqa: S704


def _inline_css(source: str) -> str:
    """Style rules written to the elements they are for; a sheet that can't be read is left where it is.

    :raises TooDeep: before the inliner, which would take the whole process with it.
    """
    html_depth.check_html_depth(source)
    try:
        done = _CSS_INLINER.inline(source)
    except css_inline.InlineError:
        done = source
    return done if done.lstrip().lower().startswith("<!doctype") else f"<!DOCTYPE html>\n{done}"


class _TextExtractor(HTMLParser):
    """Reads HTML aloud: blocks on lines of their own, links with their addresses, nothing of styles and scripts."""

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
        given = dict(attrs)
        if tag in self.SKIPPED_ELEMENTS:
            self.skip_depth += 1
        elif tag == "br":
            self.pieces.append("\n")
        elif self.BLOCK_ELEMENTS.fullmatch(tag):
            self.pieces.append("\n\n- " if tag == "li" else "\n" if tag in ("td", "th") else "\n\n")
        elif tag == "a":
            self.open_links.append((given.get("href") or "", len(self.pieces)))
        elif tag == "img" and given.get("alt"):
            self.pieces.append(str(given["alt"]))

    def handle_endtag(self, tag: str) -> None:
        if tag in self.SKIPPED_ELEMENTS:
            self.skip_depth = max(0, self.skip_depth - 1)
        elif self.BLOCK_ELEMENTS.fullmatch(tag):
            self.pieces.append("\n\n")
        elif tag == "a" and self.open_links:
            address, start = self.open_links.pop()
            words = "".join(self.pieces[start:]).strip()
            if address and address != words and not address.startswith("#"):
                self.pieces.append(f": {address} " if words else address)

    def handle_data(self, data: str) -> None:
        if not self.skip_depth:
            self.pieces.append(re.sub(r"\s+", " ", data))

    def get_text(self) -> str:
        lines = [re.sub(r"[ \t\u00a0]+", " ", line).strip() for line in "".join(self.pieces).split("\n")]
        return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).replace("\n- \n\n", "\n- ").strip() + "\n"
