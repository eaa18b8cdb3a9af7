"""What staff write: text with placeholders from a fixed list, and nothing else that would be carried out.

There is no template language behind it, so there is nothing to break out of: a text is split at its placeholders
once, and only their values are put in.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from webapp.mail.template import Placeholder, TemplateParts

PLACEHOLDERS: dict[str, str] = {
    "customer.name": "the customer's name",
    "customer.email": "the customer's e-mail",
    "offer.name": "the offer's name",
    "offer.code": "the code; with the customer's own ending where the offer asks for it",
    "offer.discount": "the discount, such as 25% or €5.00",
    "offer.ends": "the last day on which it can be used",
    "link": "the customer's personal page, filled in",
    "unsubscribe": "the page on which the customer ends these mails",
    "shop.name": "the name of your shop",
}
SUBJECT_MAX = 250
BODY_MAX = 256 * 1024

DEFAULT_SUBJECT = "{{ offer.discount }} off for you: {{ offer.name }}"
DEFAULT_TEXT = """\
Hello {{ customer.name or "there" }},

{{ offer.name }} is here, and there is something in it for you:

{{ offer.discount }} off

This is your code:

{{ offer.code }}

Give it at the till or in the shop. Or open your personal page, where everything is filled in already:

{{ link }}

It is good until {{ offer.ends }}.

See you soon
{{ shop.name }}
"""

REMINDER_SUBJECT = "Still there for you: {{ offer.discount }} off"
REMINDER_TEXT = """\
Hello {{ customer.name or "there" }},

{{ offer.name }} is still there for you until {{ offer.ends }}:

{{ offer.discount }} off

You have not used your code yet. This is it:

{{ offer.code }}

Give it at the till or in the shop. Or open your personal page, where everything is filled in already:

{{ link }}

See you soon
{{ shop.name }}
"""

_PLACEHOLDER_SYNTAX = re.compile(r"""\s*([A-Za-z_][\w.]*)\s*(?:or\s+("[^"\r\n]*"|'[^'\r\n]*')\s*)?""")


@dataclass(frozen=True)
class EmailContent:
    """A mail as staff or a program gave it. What is empty is filled in: see message.FormLetter."""

    subject: str = ""
    text: str = ""
    html: str = ""


def with_default_content(mail: EmailContent, kind: str) -> EmailContent:
    """A reminder has a text of its own for what was left empty; that of an announcement is put in by FormLetter."""
    if kind != "reminder":
        return mail
    text = mail.text if mail.text or mail.html else REMINDER_TEXT
    return EmailContent(mail.subject or REMINDER_SUBJECT, text, mail.html)


class PlaceholderError(ValueError):
    """A placeholder that is not known, or not written as one. The message is for the writer."""


def parse_template(source: str) -> TemplateParts:
    """The text in pieces: what stays as it is, and the placeholders.

    :raises Unreadable: naming the placeholder and those there are.
    """
    parts: list[str | Placeholder] = []
    end = 0
    # No pattern: one would look for the end of a placeholder again from each that has none.
    while (start := source.find("{{", end)) >= 0 and (close := source.find("}}", start + 2)) >= 0:
        parts += [_check_literal_text(source[end:start]), _parse_placeholder(source[start + 2 : close])]
        end = close + 2
    parts.append(_check_literal_text(source[end:]))
    return tuple(part for part in parts if part != "")


def _parse_placeholder(typed: str) -> Placeholder:
    inside = _PLACEHOLDER_SYNTAX.fullmatch(typed)
    if inside is None or inside[1] not in PLACEHOLDERS:
        said = " ".join(f"{{{{{typed}}}}}".split())
        near = _suggest_placeholder(typed[:100])
        meant = f" Did you mean {{{{ {near} }}}}?" if near else ""
        raise PlaceholderError(
            f"There is no placeholder {said[:80]}.{meant} These can be used: {format_placeholder_list()}."
        )
    return Placeholder(inside[1], (inside[2] or '""')[1:-1])


def _suggest_placeholder(inside: str) -> str | None:
    """The placeholder that was meant, as far as one can tell."""
    typed = inside.partition(" or ")[0].strip().lower().replace("_", ".")
    last = [name for name in PLACEHOLDERS if name.rpartition(".")[2] == typed.rpartition(".")[2]]
    near = last or difflib.get_close_matches(typed, PLACEHOLDERS, 1, 0.6)
    return near[0] if near else None


def _check_literal_text(text: str) -> str:
    for opening in ("{{", "{%"):
        at = text.find(opening)
        if at >= 0:
            said = " ".join(text[at : at + 40].split())
            why = "is not closed with }}" if opening == "{{" else "is not a placeholder"
            raise PlaceholderError(f"“{said}” {why}. These can be used: {format_placeholder_list()}.")
    return text


def format_placeholder_list() -> str:
    return ", ".join(f"{{{{ {name} }}}}" for name in PLACEHOLDERS)
