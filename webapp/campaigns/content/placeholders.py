"""The content of an email: text with placeholders from a fixed list.

There is no template language, so there is no code to inject: a text is split at its placeholders once, and only their
values are filled in.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from flask_babel import gettext as _
from flask_babel import lazy_gettext as _l

from webapp.mail.template import Placeholder, TemplateParts

# The meaning of each placeholder, as the editor explains it.
PLACEHOLDERS: dict[str, str] = {
    "customer.name": _l("the customer's name"),
    "customer.email": _l("the customer's email address"),
    "offer.name": _l("the offer's name"),
    "offer.code": _l("the code, with the customer's own suffix if the offer requires personal codes"),
    "offer.discount": _l("the discount, such as 25% or €5.00"),
    "offer.ends": _l("the last day of the offer"),
    "link": _l("the customer's personal link, which redeems without typing the code"),
    "unsubscribe": _l("the page on which the customer unsubscribes"),
    "shop.name": _l("the name of your shop"),
}
MAX_SUBJECT_LENGTH = 250
MAX_BODY_BYTES = 256 * 1024

# The default contents are lazy: str() of them is in the current language.
DEFAULT_SUBJECT: str = _l("{{ offer.discount }} off for you: {{ offer.name }}")
DEFAULT_TEXT: str = _l("""\
Hello {{ customer.name or "there" }},

{{ offer.name }} is here, and it comes with a discount for you:

{{ offer.discount }} off

This is your code:

{{ offer.code }}

Show it in the shop or enter it at the checkout. Or use your personal link, where you only need to press a button:

{{ link }}

Your code is valid until {{ offer.ends }}.

See you soon
{{ shop.name }}
""")

REMINDER_SUBJECT: str = _l("Still available to you: {{ offer.discount }} off")
REMINDER_TEXT: str = _l("""\
Hello {{ customer.name or "there" }},

{{ offer.name }} is still available to you until {{ offer.ends }}:

{{ offer.discount }} off

You have not used your code yet. Here it is:

{{ offer.code }}

Show it in the shop or enter it at the checkout. Or use your personal link, where you only need to press a button:

{{ link }}

See you soon
{{ shop.name }}
""")

_PLACEHOLDER_SYNTAX = re.compile(r"""\s*([A-Za-z_][\w.]*)\s*(?:or\s+("[^"\r\n]*"|'[^'\r\n]*')\s*)?""")


@dataclass(frozen=True)
class EmailContent:
    """An email as staff or an API client wrote it.

    `MailMerge` fills in empty fields.
    """

    subject: str = ""
    text: str = ""
    html: str = ""


def with_default_content(content: EmailContent, kind: str) -> EmailContent:
    """Fill empty fields of a reminder with its default content.

    `MailMerge` fills those of an announcement.
    """
    if kind != "reminder":
        return content
    text = content.text if content.text or content.html else str(REMINDER_TEXT)
    return EmailContent(content.subject or str(REMINDER_SUBJECT), text, content.html)


class PlaceholderError(ValueError):
    """A placeholder is unknown or malformed.

    The message is shown to the author.
    """


def parse_template(source: str) -> TemplateParts:
    """Split a text into literal text and placeholders.

    :raises PlaceholderError: names the wrong placeholder and lists the available ones.
    """
    parts: list[str | Placeholder] = []
    end = 0
    # A regular expression would search to the end of the text for each unclosed placeholder.
    while (start := source.find("{{", end)) >= 0 and (close := source.find("}}", start + 2)) >= 0:
        parts += [_check_literal_text(source[end:start]), _parse_placeholder(source[start + 2 : close])]
        end = close + 2
    parts.append(_check_literal_text(source[end:]))
    return tuple(part for part in parts if part != "")


def _parse_placeholder(expression: str) -> Placeholder:
    match = _PLACEHOLDER_SYNTAX.fullmatch(expression)
    if match is None or match[1] not in PLACEHOLDERS:
        invalid_placeholder = " ".join(f"{{{{{expression}}}}}".split())[:80]
        suggestion = _suggest_placeholder(expression[:100])
        if suggestion is None:
            raise PlaceholderError(
                _(
                    "There is no placeholder %(placeholder)s. Available placeholders: %(available)s.",
                    placeholder=invalid_placeholder,
                    available=format_placeholder_list(),
                )
            )
        raise PlaceholderError(
            _(
                "There is no placeholder %(placeholder)s. Did you mean {{ %(suggestion)s }}? "
                "Available placeholders: %(available)s.",
                placeholder=invalid_placeholder,
                suggestion=suggestion,
                available=format_placeholder_list(),
            )
        )
    return Placeholder(match[1], (match[2] or '""')[1:-1])


def _suggest_placeholder(expression: str) -> str | None:
    """Return the placeholder that was probably meant."""
    name = expression.partition(" or ")[0].strip().lower().replace("_", ".")
    suffix = name.rpartition(".")[2]
    same_suffix = [placeholder for placeholder in PLACEHOLDERS if placeholder.rpartition(".")[2] == suffix]
    matches = same_suffix or difflib.get_close_matches(name, PLACEHOLDERS, 1, 0.6)
    return matches[0] if matches else None


def _check_literal_text(text: str) -> str:
    for opening in ("{{", "{%"):
        position = text.find(opening)
        if position < 0:
            continue
        excerpt = " ".join(text[position : position + 40].split())
        if opening == "{{":
            message = _(
                "“%(text)s” is not closed with }}. Available placeholders: %(available)s.",
                text=excerpt,
                available=format_placeholder_list(),
            )
        else:
            message = _(
                "“%(text)s” is not a placeholder. Available placeholders: %(available)s.",
                text=excerpt,
                available=format_placeholder_list(),
            )
        raise PlaceholderError(message)
    return text


def format_placeholder_list() -> str:
    """Return all placeholders in their syntax, separated by commas."""
    return ", ".join(f"{{{{ {name} }}}}" for name in PLACEHOLDERS)
