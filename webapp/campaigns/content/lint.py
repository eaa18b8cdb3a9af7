"""Warnings about the content of an email that do not prevent sending.

Errors that prevent sending are in `validation`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from urllib.parse import urlsplit

from flask_babel import gettext as _
from flask_babel import ngettext

from webapp.campaigns.content.placeholders import EmailContent
from webapp.campaigns.content.validation import strip_style_elements
from webapp.mail.template import Placeholder, TemplateParts

# Gmail clips an email after about 102 kB of HTML.
HTML_SIZE_WARNING = 100 * 1024
# Characters of a subject that mail clients show on a computer; phones show about half.
SUBJECT_LENGTH_WARNING = 70
_SINGLE_BRACE_PLACEHOLDER = re.compile(r"(?<!\{)\{\s*[A-Za-z_]\w*(?:\.\w+)*\s*\}(?!\})")
# Elements whose end tag is required; browsers infer the end of others. `head` is here because its text is invisible.
_END_TAG_REQUIRED = frozenset(
    re.findall(
        r"\w+",
        "a abbr b big blockquote button center code div em font form h1 h2 h3 h4 h5 h6 head i iframe label object ol "
        "pre s script select small span strong style sub sup table textarea title u ul",
    )
)
_STRIPPED_ELEMENTS = frozenset(
    ("script", "iframe", "object", "embed", "applet", "form", "input", "button", "select", "textarea", "video", "audio")
)
# Any other element ends a `head` without an end tag.
_HEAD_ELEMENTS = ("base", "link", "meta", "noscript", "script", "style", "template", "title")
_INVISIBLE_ELEMENTS = ("script", "style", "title", "head")
_HIDDEN_BODY = re.compile(r"(?i)\bbody\s*\{[^{}]*display\s*:\s*none|<body\b[^<>]*display\s*:\s*none")
_HTTP_URL = re.compile(r"http://[^\s<>\"']+")


def lint_content(
    content: EmailContent,
    text: TemplateParts,
    body: TemplateParts,
    code: str,
    has_end: bool,
    rendered_subject: str,
    html_size: int,
) -> Iterator[str]:
    """Yield one sentence for each finding.

    :param content: the email as it was written.
    :param text: the plain text as it is sent, before placeholders are replaced.
    :param body: the HTML as it is sent, before placeholders are replaced.
    :param code: the offer's code, in case it was entered instead of its placeholder.
    :param has_end: whether the offer has an end date.
    :param rendered_subject: the subject as one recipient sees it.
    :param html_size: bytes of the HTML.
    """
    used_placeholders = {part.name for part in (*text, *body) if isinstance(part, Placeholder)}
    literal_text = "".join(part for part in (*text, *body) if isinstance(part, str))
    if not used_placeholders & {"offer.code", "link"} and code not in literal_text:
        yield _("The email contains neither the code nor the personal link, so recipients can't redeem the offer.")
    if has_end and "offer.ends" not in used_placeholders:
        yield _("The offer has an end date, but the email does not say when it ends. Add {{ offer.ends }}.")
    if html_size > HTML_SIZE_WARNING:
        yield _(
            "The HTML is %(size)s kB. Gmail cuts off an email after about 100 kB, including its footer.",
            size=html_size // 1024,
        )
    if len(rendered_subject) > SUBJECT_LENGTH_WARNING:
        yield _(
            "The subject has %(length)s characters; most mail clients show no more than %(limit)s.",
            length=len(rendered_subject),
            limit=SUBJECT_LENGTH_WARNING,
        )
    source = strip_style_elements(_join_content(content))
    for expression in sorted({match[0] for match in _SINGLE_BRACE_PLACEHOLDER.finditer(source)}):
        yield _("“%(text)s” will be sent as is: placeholders need two braces on each side.", text=expression)
    yield from _lint_html(content.html)
    for host in sorted({urlsplit(match[0]).netloc for match in _HTTP_URL.finditer(_join_content(content))}):
        yield _(
            "A link or image points to http://%(host)s. Use https, because some mail clients warn about http.",
            host=host,
        )


def _lint_html(source: str) -> Iterator[str]:
    if not source.strip():
        return
    parser = _LintParser()
    parser.feed(source)
    parser.close()
    if not parser.has_visible_content or _HIDDEN_BODY.search(source):
        yield _("Your HTML shows nothing: it has neither visible text nor images.")
    for tag in sorted({*parser.open_tags, *parser.unclosed_tags}):
        yield _(
            "A <%(tag)s> is not closed, so the rest of the email may look different in each mail client.",
            tag=tag,
        )
    for tag in sorted(parser.stripped_tags):
        yield _("Mail clients remove <%(tag)s>, so it has no effect in an email.", tag=tag)
    if parser.has_script:
        yield _("Mail clients remove links that begin with javascript: and attributes such as onclick.")
    if parser.images_without_alt:
        yield ngettext(
            "An image has no alternative text (alt), and most mail clients hide images at first.",
            "%(num)s images have no alternative text (alt), and most mail clients hide images at first.",
            parser.images_without_alt,
        )


def _join_content(content: EmailContent) -> str:
    return "\n".join((content.subject, content.text, content.html))


class _LintParser(HTMLParser):
    """Collects the elements that mail clients treat differently from browsers.

    It parses the HTML as it was written, only for a preview: in finished HTML, all elements are closed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.open_tags: list[str] = []
        # Counts per tag, so that an end tag does not search a list of possibly a hundred thousand open tags.
        self.open_tag_counts: Counter[str] = Counter()
        self.unclosed_tags: set[str] = set()
        self.stripped_tags: set[str] = set()
        self.images_without_alt = 0
        self.has_script = self.has_visible_content = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in _HEAD_ELEMENTS:
            self.handle_endtag("head")
        attributes = {name: (value or "").strip().lower() for name, value in attrs}
        # An empty alt marks an image as decorative.
        self.images_without_alt += tag == "img" and "alt" not in attributes
        self.has_visible_content |= tag == "img"
        self.has_script |= any(name.startswith("on") for name in attributes)
        self.has_script |= any(attributes.get(name, "").startswith("javascript:") for name in ("href", "src", "action"))
        if tag in _STRIPPED_ELEMENTS:
            self.stripped_tags.add(tag)
        if tag in _END_TAG_REQUIRED:
            self.open_tags.append(tag)
            self.open_tag_counts[tag] += 1

    def handle_endtag(self, tag: str) -> None:
        if not self.open_tag_counts[tag]:
            return
        while (last := self.open_tags.pop()) != tag:
            self.unclosed_tags.add(last)
            self.open_tag_counts[last] -= 1
        self.open_tag_counts[tag] -= 1

    def handle_data(self, data: str) -> None:
        self.has_visible_content |= bool(data.strip()) and not any(
            self.open_tag_counts[tag] for tag in _INVISIBLE_ELEMENTS
        )
