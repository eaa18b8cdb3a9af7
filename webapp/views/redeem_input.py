"""Parse the code and the email address entered to redeem an offer."""

from __future__ import annotations

from flask_babel import lazy_gettext as _l

from webapp.core.email_addresses import normalise_email
from webapp.core.errors import FieldError, InvalidInput
from webapp.offers.models import normalise_code


def parse_code_and_email(code: str, email: str, *, by_staff: bool = False) -> tuple[str, str]:
    """Return the normalised code and email address.

    :param by_staff: whether staff entered them for a customer, which changes the messages.
    :raises InvalidInput: with an error for each field that is missing or invalid.
    """
    missing_messages = _STAFF_MISSING_MESSAGES if by_staff else _MISSING_MESSAGES
    values, errors = [], []
    for name, text, normalise in (("code", code, normalise_code), ("email", email, normalise_email)):
        try:
            if not text.strip():
                raise InvalidInput(FieldError(name, f"{name}_missing", str(missing_messages[name])))
            values.append(normalise(text))
        except InvalidInput as error:
            errors += error.errors
    if errors:
        raise InvalidInput(*errors)
    return values[0], values[1]


_MISSING_MESSAGES = {
    "code": _l("Enter the code from our email."),
    "email": _l("Enter the email address that received our email."),
}
_STAFF_MISSING_MESSAGES = {
    "code": _l("Enter the code that the customer received."),
    "email": _l("Enter the customer's email address."),
}
