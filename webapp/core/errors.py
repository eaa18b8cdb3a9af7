"""One error for every rule that says no, and how each door renders it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FieldError:
    """What is wrong with one field: `field` is its name in the form or JSON (dotted when nested)."""

    field: str
    key: str
    message: str


class DomainError(Exception):
    """A rule says no.

    :param key: a stable word for programs, from the list in docs/api.md.
    :param message: one plain sentence for people that says what to do next.
    :param status: the HTTP status a door answers with.
    :param field: the input the error is about, when it is about one.
    """

    def __init__(self, key: str, message: str, status: int = 409, field: str | None = None) -> None:
        # A lazy text is translated here, while the language of the request is known.
        message = str(message)
        super().__init__(message)
        self.key = key
        self.message = message
        self.status = status
        self.errors = [FieldError(field, key, message)] if field else []


class InvalidInput(DomainError):
    """One or more fields can't be taken as they are (422)."""

    def __init__(self, *errors: FieldError) -> None:
        super().__init__("invalid_payload", errors[0].message, 422)
        self.errors = list(errors)


class NotFound(DomainError):
    """There is no such thing, or the asker may not know of it (404)."""

    def __init__(self, message: str = "There is nothing here.") -> None:
        super().__init__("not_found", message, 404)
