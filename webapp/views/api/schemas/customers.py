"""API schemas for customers and their imports."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictStr

from webapp.customers.models import Audience, Customer, CustomerImport, RejectedRow, Suppression


def _check_storable(text: str) -> str:
    if "\0" in text or (not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text)):
        raise ValueError("remove NUL characters and unpaired surrogates")
    return text


StorableStr = Annotated[StrictStr, AfterValidator(_check_storable)]


class CustomerPath(BaseModel):
    """A customer."""

    source_id: Annotated[
        StorableStr, Field(min_length=1, max_length=200, description="The customer's ID in your system.")
    ]


class CustomerIn(BaseModel):
    """Values of a customer to create or update. Omitted fields keep their values."""

    model_config = ConfigDict(extra="forbid")

    email: Annotated[StorableStr, Field(max_length=320, examples=["ada@example.com"])]
    name: Annotated[StorableStr, Field(max_length=1000, examples=["Ada Lovelace"])] | None = None
    locale: Annotated[StorableStr, Field(max_length=100, examples=["en-GB"])] | None = None
    audiences: (
        Annotated[
            list[Annotated[StorableStr, Field(max_length=200)]],
            Field(max_length=100, description="Names of all audiences of the customer, created when missing."),
        ]
        | None
    ) = None
    audience: (
        Annotated[
            StorableStr,
            Field(max_length=200, description="Name of an audience to join in addition, created when missing."),
        ]
        | None
    ) = None


class ErasureIn(BaseModel):
    """The email address of the customer to erase."""

    model_config = ConfigDict(extra="forbid")

    email: Annotated[StorableStr, Field(max_length=320, examples=["ada@example.com"])]


class SuppressionOut(BaseModel):
    """The entry of a customer on the suppression list.

    `source` is its origin: `campaign 3`, `import` and so on.
    """

    reason: Literal["unsubscribed", "bounced", "complained"]
    since: str
    source: str
    detail: str


class CustomerOut(BaseModel):
    """A customer.

    `suppression` is null while the customer may receive campaign emails.
    """

    source_id: str | None
    email: str
    name: str
    locale: str | None
    audiences: list[str]
    suppression: SuppressionOut | None
    unsubscribed_at: str | None
    created_at: str


class ImportQuery(BaseModel):
    """Options of an import."""

    audience: (
        Annotated[StorableStr, Field(max_length=200, description="Name of an audience that every customer joins.")]
        | None
    ) = None


class ImportPath(BaseModel):
    """The id of an import."""

    id: Annotated[int, Field(ge=1, lt=2**63)]


class ImportErrorsQuery(BaseModel):
    """A page of the rejected rows of an import."""

    cursor: Annotated[StorableStr, Field(max_length=200)] | None = None
    limit: Annotated[int, Field(ge=1, le=1000)] = 100


class RowError(BaseModel):
    """A rejected row: its line in the file, an error code and a message."""

    line: int
    code: str
    detail: str


class ImportQueued(BaseModel):
    """An import that was stored and is waiting to be processed."""

    id: int
    status: Literal["queued"]


class ImportOut(BaseModel):
    """Progress of an import.

    When done, `rows` is the sum of created, updated, unchanged, duplicates and rejected. If several rows have the same
    email address, the last one is used; the others are the `duplicates`.
    """

    id: int
    status: Literal["receiving", "queued", "running", "done", "failed"]
    error: dict[str, str] | None
    filename: str
    size: int
    read: int
    rows: int
    created: int
    updated: int
    unchanged: int
    duplicates: int
    rejected: int
    created_at: str
    finished_at: str | None
    errors: list[RowError]
    next_cursor: str | None


def customer_json(customer: Customer, audiences: list[Audience], suppression: Suppression | None) -> dict[str, Any]:
    """Return a customer as `CustomerOut`."""
    unsubscribed_at = suppression.at if suppression is not None and suppression.reason == "unsubscribed" else None
    return {
        "source_id": customer.source_id,
        "email": customer.email_as_given,
        "name": customer.name,
        "locale": customer.locale,
        "audiences": [audience.name for audience in audiences],
        "suppression": suppression_json(suppression) if suppression else None,
        "unsubscribed_at": _format_utc(unsubscribed_at),
        "created_at": _format_utc(customer.created_at),
    }


def suppression_json(suppression: Suppression) -> dict[str, Any]:
    """Return a suppression as `SuppressionOut`."""
    return {
        "reason": suppression.reason,
        "since": _format_utc(suppression.at),
        "source": suppression.source,
        "detail": suppression.detail,
    }


def import_json(row: CustomerImport, errors: list[RejectedRow], next_cursor: str | None) -> dict[str, Any]:
    """Return an import with a page of rejected rows as `ImportOut`."""
    return {
        "id": row.id,
        "status": row.status,
        "error": {"code": row.error_code, "detail": row.error} if row.error else None,
        "filename": row.filename,
        "size": row.size,
        "read": row.read,
        "rows": row.rows,
        "created": row.created,
        "updated": row.updated,
        "unchanged": row.unchanged,
        "duplicates": row.duplicates,
        "rejected": row.rejected,
        "created_at": _format_utc(row.created_at),
        "finished_at": _format_utc(row.finished_at),
        "errors": [{"line": error.line, "code": error.code, "detail": error.detail} for error in errors],
        "next_cursor": next_cursor,
    }


def _format_utc(at: datetime | None) -> str | None:
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z") if at else None
