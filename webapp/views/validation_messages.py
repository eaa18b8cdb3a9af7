"""Sentences for the validation errors of pydantic, which the API returns as `detail`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from flask_babel import gettext as _
from flask_babel import ngettext
from pydantic_core import ErrorDetails

from webapp.core.money import CURRENCY_PATTERN, PERCENT_PATTERN

# The parameters of a kind of error, such as the limit.
Context = Mapping[str, Any]


def explain_validation_error(error: ErrorDetails) -> str:
    """Return a sentence that says what to send instead.

    Kinds of errors without a sentence of their own have that of pydantic.
    """
    explain = _EXPLANATIONS.get(error["type"])
    return explain(error.get("ctx", {})) if explain else _as_sentence(error["msg"])


def _as_sentence(message: str) -> str:
    text = message.removeprefix("Value error, ")  # no translation
    return f"{text[:1].upper()}{text[1:]}".rstrip(".") + "."


def _explain_pattern(context: Context) -> str:
    pattern = context["pattern"]
    if pattern == CURRENCY_PATTERN:
        return _("Send a currency as three capital letters (ISO 4217), such as EUR.")
    if pattern == PERCENT_PATTERN:
        return _("Send a percentage as a string with at most two decimals, such as 12.5.")
    return _("The value must match the regular expression %(pattern)s.", pattern=pattern)


_EXPLANATIONS: dict[str, Callable[[Context], str]] = {
    "missing": lambda _context: _("This field is required."),
    "extra_forbidden": lambda _context: _("There is no such field or parameter. Check its name, or leave it out."),
    "string_type": lambda _context: _("Send a string."),
    "string_pattern_mismatch": _explain_pattern,
    "string_too_short": lambda context: ngettext(
        "Send at least %(num)s character.", "Send at least %(num)s characters.", context["min_length"]
    ),
    "string_too_long": lambda context: ngettext(
        "Send at most %(num)s character.", "Send at most %(num)s characters.", context["max_length"]
    ),
    "too_short": lambda context: ngettext(
        "Send at least %(num)s element.", "Send at least %(num)s elements.", context["min_length"]
    ),
    "too_long": lambda context: ngettext(
        "Send at most %(num)s element.", "Send at most %(num)s elements.", context["max_length"]
    ),
    "int_type": lambda _context: _("Send a whole number."),
    "int_parsing": lambda _context: _("Send a whole number."),
    "int_parsing_size": lambda _context: _("This number is too large."),
    "int_from_float": lambda _context: _("Send a whole number."),
    "bool_type": lambda _context: _("Send true or false."),
    "bool_parsing": lambda _context: _("Send true or false."),
    "list_type": lambda _context: _("Send a list."),
    "dict_type": lambda _context: _("Send a JSON object."),
    # The messages of pydantic contain the name of a Python class.
    "model_type": lambda _context: _("Send a JSON object."),
    "model_attributes_type": lambda _context: _("Send a JSON object."),
    "literal_error": lambda context: _("Send one of these values: %(values)s.", values=context["expected"]),
    "greater_than_equal": lambda context: _("Send a number of at least %(limit)s.", limit=context["ge"]),
    "greater_than": lambda context: _("Send a number above %(limit)s.", limit=context["gt"]),
    "less_than_equal": lambda context: _("Send a number of at most %(limit)s.", limit=context["le"]),
    "less_than": lambda context: _("Send a number below %(limit)s.", limit=context["lt"]),
}
