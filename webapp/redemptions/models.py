"""Redemptions: a row is a live use of an offer by a customer. Undoing one moves its row to `rollback`.

No foreign keys stand here: neither customers nor offers are ever deleted, and on the one table that every
redemption writes they cost more than everything else together (docs/decisions/no-foreign-keys-on-redemption.md).
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, Index, LargeBinary, SmallInteger, Text, func
from sqlalchemy.orm import Mapped, mapped_column

from webapp.core.extensions import Model

CHANNELS = ("form", "link", "api", "staff")


class Redemption(Model):
    """A live use of an offer by a customer. The primary key sees to it that there is only one."""

    __tablename__ = "redemption"
    customer_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    offer_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    redeemed_at: Mapped[datetime] = mapped_column(server_default=func.now())
    channel: Mapped[str]
    api_key_id: Mapped[int | None]
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
    """A redemption that was undone, as it was, with who undid it and why."""

    __tablename__ = "rollback"
    customer_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    offer_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    redeemed_at: Mapped[datetime] = mapped_column(primary_key=True)
    channel: Mapped[str]
    api_key_id: Mapped[int | None]
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


class RedemptionHour(Model):
    """How many live redemptions an offer has from one full hour (UTC): what its chart reads."""

    __tablename__ = "redemption_hour"
    offer_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    hour: Mapped[datetime] = mapped_column(primary_key=True)
    n: Mapped[int] = mapped_column(BigInteger)


class RedemptionTotal(Model):
    """How many of an offer's live redemptions are counted: the sum of its hours, of which it may have one for nearly
    every redemption."""

    __tablename__ = "redemption_total"
    offer_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    n: Mapped[int] = mapped_column(BigInteger)


class HourTotal(Model):
    """How many of all offers' live redemptions are counted in one full hour (UTC): the sum over the offers."""

    __tablename__ = "hour_total"
    hour: Mapped[datetime] = mapped_column(primary_key=True)
    n: Mapped[int] = mapped_column(BigInteger)


class RedemptionTally(Model):
    """Up to when redemptions are counted, by the hour and in total: one row."""

    __tablename__ = "redemption_tally"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    counted_until: Mapped[datetime]

    __table_args__ = (CheckConstraint("id = 1", name="one_row"),)


class FailedCodeAttempt(Model):
    """How often strangers' tries at an offer's code missed in one minute. Unlogged: a crash forgives.

    A clock face of sixty minutes for each offer, written over every hour: however hard somebody tries, it stays small.
    """

    __tablename__ = "code_miss"
    offer_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    slot: Mapped[int] = mapped_column(SmallInteger, primary_key=True, autoincrement=False)
    minute: Mapped[datetime]
    n: Mapped[int]

    __table_args__ = ({"prefixes": ["UNLOGGED"]},)
