"""Tables for redemptions.

A rollback moves the row of a redemption from `redemption` to `rollback`. There are no foreign keys: customers and
offers are never deleted, and in the table that every redemption writes they would cost more than everything else
together (docs/decisions/no-foreign-keys-on-redemption.md).
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, Index, LargeBinary, SmallInteger, Text, func, text
from sqlalchemy.orm import Mapped, mapped_column

from webapp.core.extensions import Model

# Replace the reason of a rollback. Stored in the database, always in English.
ERASED_REASON = "The reason was erased with the customer."  # no translation
EXPIRED_REASON = "The reason was deleted after the retention period."  # no translation
REDEMPTION_HAS_ERASABLE_DATA = "num_nonnulls(order_metadata, idempotency_key, body_hash) > 0"
ROLLBACK_HAS_ERASABLE_DATA = (
    f"{REDEMPTION_HAS_ERASABLE_DATA} or reason not in ('{ERASED_REASON}', '{EXPIRED_REASON}')"  # no translation
)


class Redemption(Model):
    """A current redemption of an offer by a customer: it is not rolled back.

    The primary key guarantees that there is only one.
    """

    __tablename__ = "redemption"
    customer_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    offer_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    redeemed_at: Mapped[datetime] = mapped_column(server_default=func.now())
    channel: Mapped[str]
    api_key_id: Mapped[int | None]
    # The user who entered it, for the channel `staff`.
    staff_user_id: Mapped[int | None] = mapped_column(BigInteger)
    order_id: Mapped[str | None]
    order_amount: Mapped[int | None] = mapped_column(BigInteger)
    order_currency: Mapped[str | None]
    discount_amount: Mapped[int | None] = mapped_column(BigInteger)
    order_metadata: Mapped[dict[str, Any] | None]
    idempotency_key: Mapped[str | None]
    body_hash: Mapped[bytes | None] = mapped_column(LargeBinary)

    __table_args__ = (
        CheckConstraint("channel in ('form', 'link', 'api', 'staff')", name="channel"),
        Index("ix_redemption_offer_id_redeemed_at", "offer_id", "redeemed_at"),
    )


class Rollback(Model):
    """A redemption that was rolled back: its row, who rolled it back, and why."""

    __tablename__ = "rollback"
    customer_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    offer_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    redeemed_at: Mapped[datetime] = mapped_column(primary_key=True)
    channel: Mapped[str]
    api_key_id: Mapped[int | None]
    # The user who entered it, for the channel `staff`.
    staff_user_id: Mapped[int | None] = mapped_column(BigInteger)
    order_id: Mapped[str | None]
    order_amount: Mapped[int | None] = mapped_column(BigInteger)
    order_currency: Mapped[str | None]
    discount_amount: Mapped[int | None] = mapped_column(BigInteger)
    order_metadata: Mapped[dict[str, Any] | None]
    idempotency_key: Mapped[str | None]
    body_hash: Mapped[bytes | None] = mapped_column(LargeBinary)
    rolled_back_at: Mapped[datetime] = mapped_column(server_default=func.now())
    rolled_back_by: Mapped[str] = mapped_column(Text)
    reason: Mapped[str] = mapped_column(Text)

    __table_args__ = (
        # Finds the rows with data that the retention period covers.
        Index("ix_rollback_free_text", "rolled_back_at", postgresql_where=text(ROLLBACK_HAS_ERASABLE_DATA)),
    )


class RedemptionRetention(Model):
    """The time until which the redemptions of an offer have lost the data that their retention period covers.

    Without it, each run would read all old redemptions again; an index on them would slow down redeeming.
    """

    __tablename__ = "redemption_retention"
    offer_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    cleared_until: Mapped[datetime]


class RedemptionHour(Model):
    """The number of current redemptions of an offer in one full hour (UTC).

    The chart of the offer reads it.
    """

    __tablename__ = "redemption_hour"
    offer_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    hour: Mapped[datetime] = mapped_column(primary_key=True)
    n: Mapped[int] = mapped_column(BigInteger)


class RedemptionTotal(Model):
    """The number of counted current redemptions of an offer: the sum of its hours.

    It is stored because an offer may have an hour for nearly every redemption.
    """

    __tablename__ = "redemption_total"
    offer_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    n: Mapped[int] = mapped_column(BigInteger)


class HourTotal(Model):
    """The number of current redemptions of all offers in one full hour (UTC)."""

    __tablename__ = "hour_total"
    hour: Mapped[datetime] = mapped_column(primary_key=True)
    n: Mapped[int] = mapped_column(BigInteger)


class RedemptionTally(Model):
    """The time until which redemptions are counted, by hour and in total.

    The table has one row.
    """

    __tablename__ = "redemption_tally"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    counted_until: Mapped[datetime]

    __table_args__ = (CheckConstraint("id = 1", name="one_row"),)


class FailedCodeAttempt(Model):
    """Failed attempts at an offer's code in one minute.

    The table is unlogged: a crash of the server empties it. Each offer has at most sixty rows, one per minute of the
    hour, which are overwritten every hour.
    """

    __tablename__ = "code_miss"
    offer_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    slot: Mapped[int] = mapped_column(SmallInteger, primary_key=True, autoincrement=False)
    minute: Mapped[datetime]
    n: Mapped[int]

    __table_args__ = ({"prefixes": ["UNLOGGED"]},)


class AddressCustomers(Model):
    """The customers for whom one client address has used shared codes on the public form.

    The table is unlogged: a crash of the server empties it. `customers` maps keyed hashes of email addresses to their
    numbers of counted attempts. The row is deleted or overwritten after `expires_at`.
    """

    __tablename__ = "address_customers"
    address: Mapped[str] = mapped_column(Text(collation="C"), primary_key=True)
    customers: Mapped[dict[str, Any]]
    expires_at: Mapped[datetime]

    __table_args__ = (
        CheckConstraint("jsonb_typeof(customers) = 'object'", name="customers"),
        Index("ix_address_customers_expires_at", "expires_at"),
        {"prefixes": ["UNLOGGED"]},
    )


class AddressExcess(Model):
    """A client address that exceeded the limit of customers with an offer's code, and when it last did.

    The table is unlogged, like `address_customers`. Rows are deleted after an hour.
    """

    __tablename__ = "address_excess"
    offer_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    address: Mapped[str] = mapped_column(Text(collation="C"), primary_key=True)
    last_at: Mapped[datetime]

    __table_args__ = ({"prefixes": ["UNLOGGED"]},)
