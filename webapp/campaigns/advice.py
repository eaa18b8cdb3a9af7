"""What staff may want to mend before a mail goes out. Nothing of this forbids it: what does is in check."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from urllib.parse import urlsplit

from webapp.campaigns.wording import MailText, Parts, Slot

# Gmail cuts a mail off behind about 102 kB of HTML.
HTML_LARGE = 100 * 1024
# What mailboxes show of a subject on a computer; telephones show about half.
SUBJECT_LONG = 70
_SINGLE = re.compile(r"(?<!\{)\{\s*[A-Za-z_]\w*(?:\.\w+)*\s*\}(?!\})")
_STYLES = re.compile(r"(?is)<style\b.*?</style\s*>")
_PLAIN_HTTP = re.compile(r"http://[^\s<>\"']+")


def notes(
    mail: MailText, subject: Parts, text: Parts, body: Parts, code: str, ends: bool, seen: str, size: int
) -> Iterator[str]:
    """One sentence for each thing.

    :param mail: as it was written; subject, text and body: what was made of it, with its placeholders.
    :param code: of the offer, should somebody have typed it instead of the placeholder.
    :param ends: whether the offer has an end.
    :param seen: the subject as one recipient sees it.
    :param size: of the HTML, in bytes.
    """
    named = {part.name for part in (*text, *body) if isinstance(part, Slot)}
    said = "".join(part for part in (*text, *body) if isinstance(part, str))
    if not named & {"offer.code", "link"} and code not in said:
        yield "There is neither the code nor the personal link in it, so nobody could use the offer."
    if ends and "offer.ends" not in named:
        yield "The offer has an end, and the mail does not say when: {{ offer.ends }}."
    if size > HTML_LARGE:
        yield f"Its HTML has {size // 1024} kB; Gmail cuts off what is behind 100 kB, and with it the foot."
    if len(seen) > SUBJECT_LONG:
        yield f"The subject has {len(seen)} characters; most mailboxes show no more than {SUBJECT_LONG}."
    for found in sorted({found[0] for found in _SINGLE.finditer(_STYLES.sub("", _all(mail)))}):
        yield f"“{found}” stays as it is: placeholders have two braces on each side."
    yield from _of_html(mail.html)
    links = {urlsplit(found[0]).netloc for found in _PLAIN_HTTP.finditer(_all(mail))}
    for host in sorted(links):
        yield f"A link or picture goes to http://{host}: use https, for some mailboxes warn of the other."


def _of_html(source: str) -> Iterator[str]:
    pictures = _Pictures()
    pictures.feed(source)
    pictures.close()
    if pictures.silent == 1:
        yield "A picture has no words (alt) for those who don't see it, and most mailboxes hide pictures at first."
    elif pictures.silent:
        yield (
            f"{pictures.silent} pictures have no words (alt) for those who don't see them, and most mailboxes hide "
            "pictures at first."
        )


def _all(mail: MailText) -> str:
    return "\n".join((mail.subject, mail.text, mail.html))


class _Pictures(HTMLParser):
    silent = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        # An empty alt says that a picture only decorates.
        self.silent += tag == "img" and "alt" not in dict(attrs)
