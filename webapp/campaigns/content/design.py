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
from webapp.mail.template import CLOSE, OPEN, Parts, Slot, mark, unmark
from webapp.shop.colours import DARK_SHEET, tones
from webapp.shop.models import ShopValues

# Longer codes would be broken on a sheet of 600 pixels when written large.
LONG_CODE = 22
# Figure spaces that a combining mark keeps from being taken for one.
BLANKS = "\u2007\u034f" * 40
_ADDRESS = re.compile(r"https?://[^\s<>\"']*[^\s<>\"'.,;:!?)]")
_ALONE = re.compile(f"{OPEN}([0-9]+){CLOSE}")
# Style sheets of other servers are not fetched: that would be a request to wherever somebody typed.
_INLINER = css_inline.CSSInliner(keep_at_rules=True, load_remote_stylesheets=False)


class Block(NamedTuple):
    """A paragraph, or one of the things that stand out: the discount, the code, the button to the personal page."""

    kind: str
    html: Markup


def designed(text: Parts, subject: Parts, shop: ShopValues, code_length: int = 0) -> Parts:
    """The HTML that goes with a plain text: a line that is only a code, a link or a discount becomes what it means.

    :param code_length: of the longest code a recipient may get; a long one is written smaller, so that it stays on a
        line.
    """
    slots: list[Slot] = []
    text_html, subject_html = _marked(text, slots), _marked(subject, slots)
    slots.append(Slot("unsubscribe"))
    blocks = _blocks(text_html, slots)
    body = current_app.jinja_env.get_template("email/designed.html").render(
        blocks=blocks,
        is_long=code_length > LONG_CODE,
        preheader=_preheader(text_html, slots),
        blanks=BLANKS,
        subject=subject_html,
        shop=shop,
        light=tones(shop.colour),
        dark=tones(shop.colour, DARK_SHEET),
        dark_sheet=DARK_SHEET,
        is_right_to_left=locales.is_right_to_left(shop.locale),
        unsubscribe=f"{OPEN}{len(slots) - 1}{CLOSE}",
    )
    return unmark(_tightened(_inlined(body)), slots)


def finished(source: Parts, shop: ShopValues) -> Parts:
    """Staff's own HTML, with its style sheet moved to where mail programs look, and a way to unsubscribe."""
    marked, slots = finished_with_marks(source, shop)
    return unmark(marked, slots)


def finished_with_marks(source: Parts, shop: ShopValues) -> tuple[str, list[Slot]]:
    """`finished`, with marks where the placeholders are, and what the marks mean."""
    marked, slots = mark(source)
    if not any(slot.name == "unsubscribe" for slot in slots):
        slots.append(Slot("unsubscribe"))
        foot = current_app.jinja_env.get_template("email/foot.html").render(
            unsubscribe=f"{OPEN}{len(slots) - 1}{CLOSE}", shop=shop
        )
        at = marked.lower().rfind("</body>")
        marked = marked[:at] + foot + marked[at:] if at >= 0 else marked + foot
    return _inlined(marked), slots


def text_with_foot(text: Parts, shop: ShopValues) -> Parts:
    """The plain text with why one gets it and a way to unsubscribe, unless it has one, and the postal address."""
    if any(isinstance(part, Slot) and part.name == "unsubscribe" for part in text):
        return text
    before = "".join(f"{line}\n" for line in (shop.reason,) if line)
    after = f"\n\n{shop.address}\n" if shop.address else "\n"
    return (*text, f"\n\n-- \n{before}{shop.unsubscribe_words}: ", Slot("unsubscribe"), after)


def text_of(source: Parts) -> Parts:
    """What an HTML mail says, as plain text."""
    marked, slots = mark(source)
    reader = _Reader()
    reader.feed(marked)
    reader.close()
    return unmark(reader.text(), slots)


def _marked(parts: Parts, slots: list[Slot]) -> str:
    """Marks that go on counting from the slots there are."""
    out = []
    for part in parts:
        if isinstance(part, str):
            out.append(part)
        else:
            slots.append(part)
            out.append(f"{OPEN}{len(slots) - 1}{CLOSE}")
    return "".join(out)


def _blocks(text: str, slots: Sequence[Slot]) -> list[Block]:
    blocks = []
    for paragraph in re.split(r"\n[ \t]*\n", text.replace("\r\n", "\n").strip()):
        lines = paragraph.strip("\n")
        if lines.strip():
            kind = _kind(lines.strip(), slots)
            blocks.append(Block(kind, _line_breaks(lines) if kind == "text" else Markup(escape(lines.strip()))))  # noqa: S704
    return blocks


def _preheader(text: str, slots: Sequence[Slot]) -> str:
    """What a mailbox shows beside the subject: the first paragraph that is more than a greeting."""
    for paragraph in re.split(r"\n[ \t]*\n", text.replace("\r\n", "\n").strip()):
        line = " ".join(paragraph.split())
        names = {slots[int(number)].name for number in _ALONE.findall(line)}
        says_something = _ALONE.sub("", line).strip() and _kind(line, slots) == "text"
        if says_something and not line.endswith((",", "،", "、")) and not names & {"link", "unsubscribe"}:
            return line
    return ""


def _tightened(source: str) -> str:
    """Without the blanks that only indent the template: they cost a third of the mail."""
    return re.sub(r">\s*\n\s*<", ">\n<", re.sub(r"\n[ \t]+", "\n", source))


def _kind(line: str, slots: Sequence[Slot]) -> str:
    found = _ALONE.search(line)
    if found is None or "\n" in line:
        return "text"
    name, rest = slots[int(found[1])].name, _ALONE.sub("", line, count=1).strip()
    if not rest:
        return {"offer.code": "code", "link": "button", "offer.discount": "discount"}.get(name, "text")
    return "discount" if name == "offer.discount" and len(rest) <= 12 and line.startswith(OPEN) else "text"


def _line_breaks(text: str) -> Markup:
    lines = []
    for line in text.split("\n"):
        pieces, end = [], 0
        for found in _ADDRESS.finditer(line):
            address = html.escape(found[0])
            pieces += [html.escape(line[end : found.start()]), f'<a href="{address}">{address}</a>']
            end = found.end()
        lines.append("".join([*pieces, html.escape(line[end:])]))
    return Markup("<br>\n".join(lines))  # noqa: S704


def _inlined(source: str) -> str:
    """Style rules written to the elements they are for; a sheet that can't be read is left where it is.

    :raises TooDeep: before the inliner, which would take the whole process with it.
    """
    html_depth.refuse_deep(source)
    try:
        done = _INLINER.inline(source)
    except css_inline.InlineError:
        done = source
    return done if done.lstrip().lower().startswith("<!doctype") else f"<!DOCTYPE html>\n{done}"


class _Reader(HTMLParser):
    """Reads HTML aloud: blocks on lines of their own, links with their addresses, nothing of styles and scripts."""

    BLOCKS = re.compile(
        "address|article|blockquote|body|center|d[dlt]|div|footer|form|h[1-6r]|header|li|main|[ou]l|p|pre|"
        "section|table|t[dhr]"
    )
    SILENT = frozenset(("style", "script", "head", "title", "template"))

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.pieces: list[str] = []
        self.silent = 0
        self.links: list[tuple[str, int]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in self.SILENT:
            self.silent += 1
        elif tag == "br":
            self.pieces.append("\n")
        elif self.BLOCKS.fullmatch(tag):
            self.pieces.append("\n\n- " if tag == "li" else "\n" if tag in ("td", "th") else "\n\n")
        elif tag == "a":
            self.links.append((given.get("href") or "", len(self.pieces)))
        elif tag == "img" and given.get("alt"):
            self.pieces.append(str(given["alt"]))

    def handle_endtag(self, tag: str) -> None:
        if tag in self.SILENT:
            self.silent = max(0, self.silent - 1)
        elif self.BLOCKS.fullmatch(tag):
            self.pieces.append("\n\n")
        elif tag == "a" and self.links:
            address, start = self.links.pop()
            words = "".join(self.pieces[start:]).strip()
            if address and address != words and not address.startswith("#"):
                self.pieces.append(f": {address} " if words else address)

    def handle_data(self, data: str) -> None:
        if not self.silent:
            self.pieces.append(re.sub(r"\s+", " ", data))

    def text(self) -> str:
        lines = [re.sub(r"[ \t\u00a0]+", " ", line).strip() for line in "".join(self.pieces).split("\n")]
        return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).replace("\n- \n\n", "\n- ").strip() + "\n"
