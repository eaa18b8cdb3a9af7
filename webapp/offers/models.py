"""Offers: what is given, under one shared code, when, to whom and how often."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Literal

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    ForeignKeyConstraint,
    Numeric,
    Text,
    UniqueConstraint,
    func,
)
from sqlalchemy.orm import Mapped, mapped_column

from webapp.core.errors import FieldError, InvalidInput
from webapp.core.extensions import Id, Model
from webapp.core.money import Discount

CODE_MIN, CODE_MAX = 3, 40
CODE_ALPHABET = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
DASHES = frozenset("-‐‑‒–—―−﹘﹣－_")

OfferState = Literal["scheduled", "live", "paused", "ended", "used_up"]


@dataclass(frozen=True)
class OfferValues:
    """Everything about an offer that people decide. `code` is as written; None has one generated."""

    name: str
    discount: Discount
    starts_at: datetime
    code: str | None = None
    ends_at: datetime | None = None
    time_zone: str = "UTC"
    audience_id: int | None = None
    personal_code_required: bool = False
    max_redemptions: int | None = None


class Offer(Model):
    """One offer with its one shared code. `redeemed` counts only where there is a cap (`max_redemptions`).

    `code` is the one that is given out now; `OfferCode` has it too, with those that were given out before.
    """

    __tablename__ = "offer"
    id: Mapped[Id]
    code: Mapped[str] = mapped_column(Text(collation="C"))
    code_as_written: Mapped[str]
    name: Mapped[str]
    discount_type: Mapped[str]
    percent: Mapped[Decimal | None] = mapped_column(Numeric(5, 2))
    amount: Mapped[int | None] = mapped_column(BigInteger)
    currency: Mapped[str | None]
    starts_at: Mapped[datetime]
    ends_at: Mapped[datetime | None]
    time_zone: Mapped[str] = mapped_column(server_default="UTC")
    paused_at: Mapped[datetime | None]
    audience_id: Mapped[int | None] = mapped_column(ForeignKey("audience.id"))
    personal_code_required: Mapped[bool] = mapped_column(server_default="false")
    max_redemptions: Mapped[int | None] = mapped_column(BigInteger)
    redeemed: Mapped[int] = mapped_column(BigInteger, server_default="0")
    # Set by the first launch or redemption; from then on the discount, and whether there is a cap, stay as they are.
    frozen_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    version: Mapped[int] = mapped_column(server_default="1")

    __table_args__ = (
        # Held at the commit, for offer and code name each other. That makes the code unique among all offers, too.
        ForeignKeyConstraint(
            ["id", "code", "code_as_written"],
            ["offer_code.offer_id", "offer_code.code", "offer_code.code_as_written"],
            name="fk_offer_current_code",
            deferrable=True,
            initially="DEFERRED",
            use_alter=True,
        ),
        CheckConstraint(f"code ~ '^[A-Z0-9]{{{CODE_MIN},{CODE_MAX}}}$'", name="code"),
        CheckConstraint(
            "(discount_type = 'percent' and percent > 0 and percent <= 100 and amount is null and currency is null)"
            " or (discount_type = 'amount' and amount > 0 and currency ~ '^[A-Z]{3}$' and percent is null)",
            name="discount",
        ),
        CheckConstraint("ends_at is null or ends_at > starts_at", name="window"),
        CheckConstraint("max_redemptions is null or max_redemptions >= 1", name="cap"),
        CheckConstraint("redeemed >= 0 and (max_redemptions is null or redeemed <= max_redemptions)", name="redeemed"),
        # The counter of a capped offer is updated in place (HOT) as long as its page has room.
        {"postgresql_with": {"fillfactor": 50}},
    )

    @property
    def discount(self) -> Discount:
        if self.discount_type == "percent":
            return Discount("percent", percent=self.percent)
        return Discount("amount", amount=self.amount, currency=self.currency)

    def values(self) -> OfferValues:
        """What was decided about it, as it stands now."""
        return OfferValues(
            name=self.name,
            discount=self.discount,
            starts_at=self.starts_at,
            code=self.code_as_written,
            ends_at=self.ends_at,
            time_zone=self.time_zone,
            audience_id=self.audience_id,
            personal_code_required=self.personal_code_required,
            max_redemptions=self.max_redemptions,
        )

    def state(self, at: datetime) -> OfferState:
        """The one word that staff see for it."""
        if self.ends_at is not None and at >= self.ends_at:
            return "ended"
        if self.paused_at is not None:
            return "paused"
        if self.max_redemptions is not None and self.redeemed >= self.max_redemptions:
            return "used_up"
        return "scheduled" if at < self.starts_at else "live"


class OfferCode(Model):
    """A code that an offer has or had. It works until it is closed and stays taken for ever.

    The one that stands in `Offer.code` is given out now; the other open ones are aliases: mails and posters have them.
    """

    __tablename__ = "offer_code"
    code: Mapped[str] = mapped_column(Text(collation="C"), primary_key=True)
    offer_id: Mapped[int] = mapped_column(ForeignKey("offer.id"))
    code_as_written: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    closed_at: Mapped[datetime | None]

    # What an offer's foreign key points at, and how the codes of an offer are found.
    __table_args__ = (UniqueConstraint("offer_id", "code", "code_as_written"),)


def normalise_code(given: str) -> str:
    """The form of a code that is compared: NFKC, upper-cased, spaces and dashes dropped.

    :raises Invalid: `code_invalid` when anything else than A-Z and 0-9 is left, or nothing, or too much.
    """
    if len(given) <= 4 * CODE_MAX:
        folded = unicodedata.normalize("NFKC", given).upper()
        code = "".join(c for c in folded if c not in DASHES and not c.isspace())
        if code and len(code) <= 2 * CODE_MAX and CODE_ALPHABET.issuperset(code):
            return code
    raise InvalidInput(FieldError("code", "code_invalid", "A code has only letters from A to Z and digits."))
