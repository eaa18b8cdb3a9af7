"""Parse the code and the email address that someone typed to redeem."""

from __future__ import annotations

from webapp.core.email_addresses import normalise_email
from webapp.core.errors import FieldError, InvalidInput
from webapp.offers.models import normalise_code


def _parse_code_and_email(code: str, email: str) -> tuple[str, str]:
    found, errors = [], []
    for name, given, normalise in (("code", code, normalise_code), ("email", email, normalise_email)):
        try:
            if not given.strip():
                raise InvalidInput(FieldError(name, f"{name}_missing", _MISSING_MESSAGES[name]))
            found.append(normalise(given))
        except InvalidInput as error:
            errors += error.errors
    if errors:
        raise InvalidInput(*errors)
    return found[0], found[1]


_MISSING_MESSAGES = {
    "code": "Please type the code as it stands in our mail.",
    "email": "Please type the e-mail address our mail came to.",
}
