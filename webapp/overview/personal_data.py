"""All personal data of one customer, for an export (GDPR, articles 15 and 20).

docs/privacy.md lists what is stored about a customer and where. A test compares the tables with what is exported here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice
from typing import Literal

from sqlalchemy import select

from webapp.accounts import audit_queries
from webapp.accounts.audit_queries import CustomerViews
from webapp.accounts.models import AuditEntry
from webapp.campaigns.deliveries import queries as delivery_queries
from webapp.campaigns.deliveries.status import DeliveryStatus
from webapp.campaigns.models import Campaign
from webapp.core.database_clock import get_database_time
from webapp.core.extensions import db
from webapp.customers.models import Audience, AudienceMember, Customer, Suppression
from webapp.customers.rejected_rows import RejectedRowOfCustomer, iter_rejected_rows_of
from webapp.customers.suppression_sync import suppression_keys
from webapp.offers.models import Offer
from webapp.redemptions import queries as redemption_queries
from webapp.redemptions.queries import RedemptionRecord

ActorKind = Literal["customer", "staff", "api", "system"]
_CAMPAIGNS_PER_QUERY = 500


@dataclass(frozen=True)
class CampaignEmail:
    """An email of a campaign to the customer."""

    kind: str
    subject: str
    offer_name: str
    code: str
    launched_at: datetime | None
    delivery: DeliveryStatus


@dataclass(frozen=True)
class AudienceMembership:
    """An audience of the customer, and since when."""

    name: str
    joined_at: datetime


@dataclass(frozen=True)
class PersonalData:
    """The personal data of a customer.

    The iterators read the database while they are consumed, each once.

    :ivar exported_at: time of the snapshot, by the clock of the database.
    :ivar suppressions: entries of the suppression list for the address or its hash.
    """

    exported_at: datetime
    customer: Customer
    suppressions: list[Suppression]
    audiences: list[AudienceMembership]
    redemptions: Iterator[RedemptionRecord]
    emails: Iterator[CampaignEmail]
    rejected_rows: Iterator[RejectedRowOfCustomer]
    audit_entries: Iterator[AuditEntry]
    views: Iterator[CustomerViews]


def load_personal_data(customer_id: int) -> PersonalData | None:
    """Return the personal data of a customer, all of it from one snapshot; None if erased or unknown.

    The lists are streamed, so that any number of rows fits into memory. The snapshot is the transaction of the session,
    which the caller ends with `close_personal_data`.
    """
    db.session.rollback()
    db.session.connection(execution_options={"isolation_level": "REPEATABLE READ"})  # no translation
    customer = db.session.get(Customer, customer_id)
    if customer is None or customer.erased_at is not None:
        db.session.rollback()
        return None
    return PersonalData(
        get_database_time(),
        customer,
        _list_suppressions(customer),
        _list_memberships(customer_id),
        redemption_queries.iter_customer_redemptions(customer_id),
        _iter_emails(customer_id),
        iter_rejected_rows_of(customer),
        audit_queries.iter_customer_entries(customer_id),
        audit_queries.iter_customer_views(customer_id),
    )


def close_personal_data() -> None:
    """End the snapshot of `load_personal_data`."""
    db.session.rollback()


def classify_actor(actor: str) -> ActorKind:
    """Return what kind of actor a stored name stands for.

    The right of access does not include the identity of the employees who handled the data under the authority of the
    shop (CJEU, C-579/21), so exports only have the kind.
    """
    if actor == "the customer":
        return "customer"
    # Earlier versions stored `key NAME`.
    if actor.startswith(("API key ", "key ")):  # no translation
        return "api"
    return "staff" if "@" in actor or actor.startswith("erased user ") else "system"


def _list_suppressions(customer: Customer) -> list[Suppression]:
    keys = list(suppression_keys(customer.email).values())
    return list(db.session.scalars(select(Suppression).where(Suppression.email.in_(keys)).order_by(Suppression.at)))


def _list_memberships(customer_id: int) -> list[AudienceMembership]:
    rows = db.session.execute(
        select(Audience.name, AudienceMember.joined_at)
        .join(AudienceMember, AudienceMember.audience_id == Audience.id)
        .where(AudienceMember.customer_id == customer_id)
        .order_by(Audience.name)
    )
    return [AudienceMembership(*row) for row in rows]


def _iter_emails(customer_id: int) -> Iterator[CampaignEmail]:
    columns = Campaign.id, Campaign.kind, Campaign.subject, Campaign.launched_at, Offer.name, Offer.code_as_written
    remaining = delivery_queries.iter_customer_deliveries(customer_id)
    while deliveries := list(islice(remaining, _CAMPAIGNS_PER_QUERY)):
        ids = [delivery.campaign_id for delivery in deliveries]
        rows = db.session.execute(
            select(*columns).join(Offer, Offer.id == Campaign.offer_id).where(Campaign.id.in_(ids))
        )
        campaigns = {row.id: row for row in rows}
        for delivery in deliveries:
            row = campaigns[delivery.campaign_id]
            yield CampaignEmail(
                row.kind, row.subject, row.name, row.code_as_written, row.launched_at, _without_staff(delivery)
            )


def _without_staff(delivery: DeliveryStatus) -> DeliveryStatus:
    """Remove the user who dismissed an uncertain email, whose name ends its text."""
    return replace(delivery, text=delivery.text.rpartition("; ")[0]) if delivery.state == "left" else delivery
