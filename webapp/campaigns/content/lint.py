"""What staff may want to mend before a mail goes out. Nothing of this forbids it: what does is in check."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from urllib.parse import urlsplit

from webapp.campaigns.content.placeholders import EmailContent
from webapp.campaigns.content.validation import strip_style_elements
from webapp.mail.template import Placeholder, TemplateParts

# Gmail cuts a mail off behind about 102 kB of HTML.
HTML_SIZE_WARNING = 100 * 1024
# What mailboxes show of a subject on a computer; telephones show about half.
SUBJECT_LENGTH_WARNING = 70
_SINGLE_BRACE_PLACEHOLDER = re.compile(r"(?<!\{)\{\s*[A-Za-z_]\w*(?:\.\w+)*\s*\}(?!\})")
# Elements that must be closed; of others, browsers know the end themselves.
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
_INVISIBLE_ELEMENTS = ("script", "style", "title", "head")
_HIDDEN_BODY = re.compile(r"(?i)\bbody\s*\{[^{}]*display\s*:\s*none|<body\b[^<>]*display\s*:\s*none")
_HTTP_URL = re.compile(r"http://[^\s<>\"']+")


def lint_content(
    mail: EmailContent,
    subject: TemplateParts,
    text: TemplateParts,
    body: TemplateParts,
    code: str,
    ends: bool,
    seen: str,
    size: int,
) -> Iterator[str]:
    """One sentence for each thing.

    :param mail: as it was written; subject, text and body: what was made of it, with its placeholders.
    :param code: of the offer, should somebody have typed it instead of the placeholder.
    :param ends: whether the offer has an end.
    :param seen: the subject as one recipient sees it.
    :param size: of the HTML, in bytes.
    """
    named = {part.name for part in (*text, *body) if isinstance(part, Placeholder)}
    said = "".join(part for part in (*text, *body) if isinstance(part, str))
    if not named & {"offer.code", "link"} and code not in said:
        yield "There is neither the code nor the personal link in it, so nobody could use the offer."
    if ends and "offer.ends" not in named:
        yield "The offer has an end, and the mail does not say when: {{ offer.ends }}."
    if size > HTML_SIZE_WARNING:
        yield f"Its HTML has {size // 1024} kB; Gmail cuts off what is behind 100 kB, and with it the foot."
    if len(seen) > SUBJECT_LENGTH_WARNING:
        yield f"The subject has {len(seen)} characters; most mailboxes show no more than {SUBJECT_LENGTH_WARNING}."
    for found in sorted(
        {found[0] for found in _SINGLE_BRACE_PLACEHOLDER.finditer(strip_style_elements(_join_content(mail)))}
    ):
        yield f"“{found}” stays as it is: placeholders have two braces on each side."
    yield from _lint_html(mail.html)
    links = {urlsplit(found[0]).netloc for found in _HTTP_URL.finditer(_join_content(mail))}
    for host in sorted(links):
        yield f"A link or picture goes to http://{host}: use https, for some mailboxes warn of the other."


def _lint_html(source: str) -> Iterator[str]:
    if not source.strip():
        return
    seen = _LintParser()
    seen.feed(source)
    seen.close()
    if not seen.has_visible_content or _HIDDEN_BODY.search(source):
        yield "Nothing of your HTML is to be seen: it has neither words nor pictures that are shown."
    for tag in sorted({*seen.open_tags, *seen.unclosed_tags}):
        yield f"A <{tag}> is not closed, so what follows, and the foot, may look different in each mailbox."
    for tag in sorted(seen.stripped_tags):
        yield f"Mailboxes take out <{tag}>: nothing of it works in a mail."
    if seen.has_script:
        yield "Mailboxes take out links that begin with javascript: and attributes such as onclick."
    if seen.images_without_alt == 1:
        yield "A picture has no words (alt) for those who don't see it, and most mailboxes hide pictures at first."
    elif seen.images_without_alt:
        yield (
            f"{seen.images_without_alt} pictures have no words (alt) for those who don't see them, "
            "and most mailboxes hide pictures at first."
        )


def _join_content(mail: EmailContent) -> str:
    return "\n".join((mail.subject, mail.text, mail.html))


class _LintParser(HTMLParser):
    """What is in somebody's HTML that mailboxes treat otherwise than browsers do."""

    def __init__(self) -> None:
        super().__init__()
        self.open_tags: list[str] = []
        # How many of each: a list of a hundred thousand is not looked through for every end tag.
        self.open_tag_counts: Counter[str] = Counter()
        self.unclosed_tags: set[str] = set()
        self.stripped_tags: set[str] = set()
        self.images_without_alt = 0
        self.has_script = self.has_visible_content = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: (value or "").strip().lower() for name, value in attrs}
        # An empty alt says that a picture only decorates.
        self.images_without_alt += tag == "img" and "alt" not in given
        self.has_visible_content |= tag == "img"
        self.has_script |= any(name.startswith("on") for name in given)
        self.has_script |= any(given.get(name, "").startswith("javascript:") for name in ("href", "src", "action"))
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
