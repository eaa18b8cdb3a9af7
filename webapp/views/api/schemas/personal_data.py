"""The JSON export of a customer's personal data, as a stream and as API schemas."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Annotated, Any, Literal

import pydantic_core
from pydantic import BaseModel, ConfigDict, Field

from webapp.accounts.audit_queries import CustomerViews
from webapp.accounts.models import AuditEntry
from webapp.core.formatting import format_rfc3339
from webapp.customers.models import Customer, Suppression
from webapp.customers.rejected_rows import RejectedRowOfCustomer
from webapp.overview.personal_data import (
    ActorKind,
    AudienceMembership,
    CampaignEmail,
    PersonalData,
    classify_actor,
    close_personal_data,
)
from webapp.redemptions.queries import RedemptionRecord
from webapp.views.api.schemas.customers import StorableStr
from webapp.views.api.schemas.redemptions import RedemptionOut, redemption_json

CHUNK_BYTES = 64 * 1024


class PersonalDataIn(BaseModel):
    """The email address of the customer whose personal data is exported."""

    model_config = ConfigDict(extra="forbid")

    email: Annotated[StorableStr, Field(max_length=320, examples=["ada@example.com"])]


class PersonOut(BaseModel):
    """The customer.

    `normalised_email` is the address in the form that identifies the customer. `active_at` decides about the end of the
    retention period.
    """

    id: int
    email: str
    normalised_email: str
    name: str
    locale: str | None
    source_id: str | None
    created_at: str
    active_at: str


class SuppressionEntryOut(BaseModel):
    """An entry of the suppression list. `address` is `plain`, or `hash` if only the hash of the address is stored."""

    address: Literal["plain", "hash"]
    reason: Literal["unsubscribed", "bounced", "complained"]
    since: str
    source: str
    detail: str


class MembershipOut(BaseModel):
    """An audience of the customer."""

    name: str
    joined_at: str


class ExportedRedemptionOut(RedemptionOut):
    """A redemption, rolled back or not, with everything that is stored about it.

    `idempotency_key_hash` and `request_hash` are hashes of the request that the shop sent (hexadecimal or Base64).
    """

    entered_by: ActorKind | None = None
    rolled_back_by: ActorKind | None
    api_key_id: int | None
    idempotency_key_hash: str | None
    request_hash: str | None


class CampaignEmailOut(BaseModel):
    """An email of a campaign, with its delivery. `reply` is that of the mail server."""

    campaign: int
    kind: Literal["announcement", "reminder"]
    offer: str
    code: str
    subject: str
    launched_at: str | None
    status: str
    at: str | None
    attempts: int
    next_attempt_at: str | None
    reply_code: int | None
    reply: str
    note: str


class RejectedRowOut(BaseModel):
    """A row of an imported file that was rejected wholly or in part, and contains the email address."""

    imported_at: str
    filename: str
    line: int
    code: str
    detail: str
    row: str


class PersonalAuditEntryOut(BaseModel):
    """An entry of the audit log about the customer. `by` is the kind of actor, never a name."""

    at: str
    action: str
    by: ActorKind
    detail: dict[str, Any] | None


class ViewsOut(BaseModel):
    """How often staff viewed the customer in one hour of the last 90 days. Staff are not named."""

    hour: str
    action: str
    count: int


class PersonalDataOut(BaseModel):
    """All personal data of a customer, from one snapshot."""

    exported_at: str
    customer: PersonOut
    suppressions: list[SuppressionEntryOut]
    audiences: list[MembershipOut]
    redemptions: list[ExportedRedemptionOut]
    emails: list[CampaignEmailOut]
    rejected_rows: list[RejectedRowOut]
    audit_entries: list[PersonalAuditEntryOut]
    views: list[ViewsOut]


def stream_personal_data_json(data: PersonalData) -> Iterator[bytes]:
    """Stream `PersonalDataOut` in chunks of about 64 KiB, then end the snapshot."""
    lists: tuple[tuple[str, Iterable[dict[str, Any]]], ...] = (
        ("suppressions", map(_suppression_json, data.suppressions)),
        ("audiences", map(_membership_json, data.audiences)),
        ("redemptions", map(_redemption_json, data.redemptions)),
        ("emails", map(_email_json, data.emails)),
        ("rejected_rows", map(_rejected_row_json, data.rejected_rows)),
        ("audit_entries", map(_audit_entry_json, data.audit_entries)),
        ("views", map(_views_json, data.views)),
    )
    head = {"exported_at": format_rfc3339(data.exported_at), "customer": _customer_json(data.customer)}
    parts = chain([_to_json(head)[:-1]], *(_stream_list(name, items) for name, items in lists), [b"}\n"])
    try:
        yield from join_chunks(parts)
    finally:
        close_personal_data()


def join_chunks(parts: Iterable[bytes]) -> Iterator[bytes]:
    """Join small parts of a response to chunks of about 64 KiB."""
    buffer = bytearray()
    for part in parts:
        buffer += part
        if len(buffer) >= CHUNK_BYTES:
            yield bytes(buffer)
            buffer.clear()
    yield bytes(buffer)


def _stream_list(name: str, items: Iterable[dict[str, Any]]) -> Iterator[bytes]:
    yield f',"{name}":['.encode()
    separator = b""
    for item in items:
        yield separator + _to_json(item)
        separator = b",\n"
    yield b"]"


def _to_json(value: object) -> bytes:
    return pydantic_core.to_json(value, fallback=str)


def _customer_json(customer: Customer) -> dict[str, Any]:
    return {
        "id": customer.id,
        "email": customer.email_as_given,
        "normalised_email": customer.email,
        "name": customer.name,
        "locale": customer.locale,
        "source_id": customer.source_id,
        "created_at": format_rfc3339(customer.created_at),
        "active_at": format_rfc3339(customer.active_at),
    }


def _suppression_json(suppression: Suppression) -> dict[str, Any]:
    return {
        "address": "hash" if suppression.is_hashed else "plain",
        "reason": suppression.reason,
        "since": format_rfc3339(suppression.at),
        "source": suppression.source,
        "detail": suppression.detail,
    }


def _membership_json(membership: AudienceMembership) -> dict[str, Any]:
    return {"name": membership.name, "joined_at": format_rfc3339(membership.joined_at)}


def _redemption_json(record: RedemptionRecord) -> dict[str, Any]:
    row = record.row
    return redemption_json(record, names_user=False) | {
        "entered_by": None if record.entered_by is None else classify_actor(record.entered_by),
        "rolled_back_by": None if row.rolled_back_by is None else classify_actor(row.rolled_back_by),
        "api_key_id": row.api_key_id,
        "idempotency_key_hash": row.idempotency_key,
        "request_hash": None if row.body_hash is None else bytes(row.body_hash).hex(),
    }


def _email_json(email: CampaignEmail) -> dict[str, Any]:
    delivery = email.delivery
    return {
        "campaign": delivery.campaign_id,
        "kind": email.kind,
        "offer": email.offer_name,
        "code": email.code,
        "subject": email.subject,
        "launched_at": format_rfc3339(email.launched_at),
        "status": delivery.state,
        "at": format_rfc3339(delivery.at),
        "attempts": delivery.attempts,
        "next_attempt_at": format_rfc3339(delivery.next_at),
        "reply_code": delivery.code,
        "reply": delivery.text,
        "note": delivery.note,
    }


def _rejected_row_json(row: RejectedRowOfCustomer) -> dict[str, Any]:
    values = row._asdict()
    del values["id"]
    return values | {"imported_at": format_rfc3339(row.imported_at)}


def _audit_entry_json(entry: AuditEntry) -> dict[str, Any]:
    return {
        "at": format_rfc3339(entry.at),
        "action": entry.action,
        "by": classify_actor(entry.actor),
        "detail": entry.detail,
    }


def _views_json(views: CustomerViews) -> dict[str, Any]:
    return {"hour": format_rfc3339(views.hour), "action": views.kind, "count": views.times}
