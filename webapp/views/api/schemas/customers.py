"""The JSON of customers and their imports: what is taken and what is given."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictStr

from webapp.customers.models import Audience, Customer, CustomerImport, RejectedRow, Suppression


def _check_storable(text: str) -> str:
    if "\0" in text or (not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text)):
        raise ValueError("leave out NUL and unpaired surrogates")
    return text


StorableStr = Annotated[StrictStr, AfterValidator(_check_storable)]


class CustomerPath(BaseModel):
    source_id: Annotated[StorableStr, Field(min_length=1, max_length=200, description="Your own id of the customer.")]


class CustomerIn(BaseModel):
    """A customer as it shall be. What is left out stays as it is."""

    model_config = ConfigDict(extra="forbid")

    email: Annotated[StorableStr, Field(max_length=320, examples=["ada@example.com"])]
    name: Annotated[StorableStr, Field(max_length=1000, examples=["Ada Lovelace"])] | None = None
    locale: Annotated[StorableStr, Field(max_length=100, examples=["en-GB"])] | None = None
    audiences: (
        Annotated[
            list[Annotated[StorableStr, Field(max_length=200)]],
            Field(max_length=100, description="All audiences to be in, made when missing."),
        ]
        | None
    ) = None
    audience: (
        Annotated[
            StorableStr,
            Field(max_length=200, description="An audience to be in besides those one is in, made when missing."),
        ]
        | None
    ) = None


class ErasureIn(BaseModel):
    """Whom to erase."""

    model_config = ConfigDict(extra="forbid")

    email: Annotated[StorableStr, Field(max_length=320, examples=["ada@example.com"])]


class SuppressionOut(BaseModel):
    """Why a customer must not be mailed, since when, and where that is known from: `campaign 3`, `import` and so on."""

    reason: Literal["unsubscribed", "bounced", "complained"]
    since: str
    source: str
    detail: str


class CustomerOut(BaseModel):
    """A customer as it is known. `suppression` is null while they may be mailed."""

    source_id: str | None
    email: str
    name: str
    locale: str | None
    audiences: list[str]
    suppression: SuppressionOut | None
    unsubscribed_at: str | None
    created_at: str


class ImportQuery(BaseModel):
    audience: (
        Annotated[StorableStr, Field(max_length=200, description="An audience that every customer joins.")] | None
    ) = None


class ImportPath(BaseModel):
    id: Annotated[int, Field(ge=1, lt=2**63)]


class ImportErrorsQuery(BaseModel):
    """Which rows that could not be taken to show: behind a cursor, at most this many."""

    cursor: Annotated[StorableStr, Field(max_length=200)] | None = None
    limit: Annotated[int, Field(ge=1, le=1000)] = 100


class RowError(BaseModel):
    """A row that could not be taken: its line in the file, why for programs, why for people."""

    line: int
    code: str
    detail: str


class ImportQueued(BaseModel):
    id: int
    status: Literal["queued"]


class ImportOut(BaseModel):
    """How far an import is. Once it is done, `rows` is the sum of created, updated, unchanged, duplicates and rejected.

    Of several rows about one e-mail the last one counts; the others are the `duplicates`.
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


def customer_json(customer: Customer, audiences: list[Audience], listed: Suppression | None) -> dict[str, Any]:
    return {
        "source_id": customer.source_id,
        "email": customer.email_as_given,
        "name": customer.name,
        "locale": customer.locale,
        "audiences": [audience.name for audience in audiences],
        "suppression": suppression_json(listed) if listed else None,
        "unsubscribed_at": _format_utc(listed.at) if listed and listed.reason == "unsubscribed" else None,
        "created_at": _format_utc(customer.created_at),
    }


def suppression_json(listed: Suppression) -> dict[str, Any]:
    return {"reason": listed.reason, "since": _format_utc(listed.at), "source": listed.source, "detail": listed.words}


def import_json(row: CustomerImport, errors: list[RejectedRow], following: str | None) -> dict[str, Any]:
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
        "next_cursor": following,
    }


def _format_utc(at: datetime | None) -> str | None:
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z") if at else None
