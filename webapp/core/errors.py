"""Exceptions for violated rules and invalid input.

Each interface (staff, public, API) renders them in its own way.
"""

from __future__ import annotations

from dataclasses import dataclass

from flask_babel import gettext as _

# The number of errors that one response lists.
MAX_LISTED_ERRORS = 20


@dataclass(frozen=True)
class FieldError:
    """An error of one field.

    :param field: name of the field in the form or JSON body (dotted when nested).
    :param key: stable error code for programs, from the list in docs/api.md.
    :param is_header: whether `field` is the name of a header of the request.
    """

    field: str
    key: str
    message: str
    is_header: bool = False


class DomainError(Exception):
    """A rule of the domain does not allow the action.

    :param key: stable error code for programs, from the list in docs/api.md.
    :param message: a human-readable sentence that says what to do next; a lazy text is translated immediately.
    :param status: HTTP status of the response.
    :param field: the input field that the error is about, if any.
    :ivar customer_message: the sentence for customers, where it differs.
    """

    customer_message: str | None = None

    def __init__(self, key: str, message: str, status: int = 409, field: str | None = None) -> None:
        # Translated here, while the language of the request is known.
        message = str(message)
        super().__init__(message)
        self.key = key
        self.message = message
        self.status = status
        self.errors = [FieldError(field, key, message)] if field else []


class InvalidInput(DomainError):
    """One or more fields are invalid (422)."""

    def __init__(self, *errors: FieldError) -> None:
        super().__init__("invalid_payload", errors[0].message, 422)
        self.errors = list(errors)


class NotFound(DomainError):
    """The object does not exist, or the client must not know that it exists (404)."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__("not_found", _("Not found.") if message is None else message, 404)


def format_error_count(total: int) -> str:
    """Return the sentence that says how many of a response's errors are listed.

    :param total: the number of all errors, above `MAX_LISTED_ERRORS`.
    """
    return str(_("The first %(limit)s of %(total)s errors are listed.", limit=MAX_LISTED_ERRORS, total=total))
