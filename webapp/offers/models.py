"""Tables for offers and their codes."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Literal

from flask_babel import gettext as _
from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    ForeignKeyConstraint,
    Numeric,
    Sequence,
    Text,
    UniqueConstraint,
    func,
)
from sqlalchemy.orm import Mapped, mapped_column, relationship

from webapp.core.errors import FieldError, InvalidInput
from webapp.core.extensions import Model
from webapp.core.money import Discount

MIN_CODE_LENGTH, MAX_CODE_LENGTH = 3, 40
CODE_ALPHABET = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
DASHES = frozenset("-‐‑‒–—―−﹘﹣－_")

# The ids of offers. The code of an offer is reserved under its id before the offer is inserted.
OFFER_IDS = Sequence("offer_id_seq")

OfferState = Literal["scheduled", "live", "paused", "ended", "used_up"]


@dataclass(frozen=True)
class OfferValues:
    """The values of an offer that users choose.

    :param code: the code as displayed; None generates one.
    :param max_redemptions: the cap; None for no limit.
    """

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
    """An offer with its shared code.

    `max_redemptions` is the cap. Its copy in the counter is the one that is enforced; `offers.actions` writes both in
    one transaction. `code` is the current code; the table of `OfferCode` contains it and all earlier ones.
    """

    __tablename__ = "offer"
    id: Mapped[int] = mapped_column(BigInteger, OFFER_IDS, server_default=OFFER_IDS.next_value(), primary_key=True)
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
    # Set by the first launch or redemption; from then on the discount and the code cannot be changed directly, and a
    # cap can neither be added nor removed.
    frozen_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    version: Mapped[int] = mapped_column(server_default="1")
    # Always joined: `redeemed` decides on the state.
    counter: Mapped[OfferCounter] = relationship(lazy="joined", innerjoin=True)

    __table_args__ = (
        # Also makes the code unique among offers. A code that is replaced is replaced in the offer too.
        ForeignKeyConstraint(
            ["id", "code", "code_as_written"],
            ["offer_code.offer_id", "offer_code.code", "offer_code.code_as_written"],
            name="fk_offer_current_code",
            onupdate="CASCADE",
        ),
        CheckConstraint(f"code ~ '^[A-Z0-9]{{{MIN_CODE_LENGTH},{MAX_CODE_LENGTH}}}$'", name="code"),
        CheckConstraint(
            "(discount_type = 'percent' and percent > 0 and percent <= 100 and amount is null and currency is null)"
            " or (discount_type = 'amount' and amount > 0 and currency ~ '^[A-Z]{3}$' and percent is null)",
            name="discount",
        ),
        CheckConstraint("ends_at is null or ends_at > starts_at", name="window"),
        CheckConstraint("max_redemptions is null or max_redemptions >= 1", name="cap"),
    )

    @property
    def discount(self) -> Discount:
        """The discount."""
        if self.discount_type == "percent":
            return Discount("percent", percent=self.percent)
        return Discount("amount", amount=self.amount, currency=self.currency)

    @property
    def redeemed(self) -> int:
        """The number of redemptions that count towards the cap; 0 without a cap."""
        return self.counter.redeemed

    def values(self) -> OfferValues:
        """Return the current values of the offer."""
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
        """Return the state of the offer at a time, as staff and the API see it."""
        if self.ends_at is not None and at >= self.ends_at:
            return "ended"
        if self.paused_at is not None:
            return "paused"
        if self.max_redemptions is not None and self.redeemed >= self.max_redemptions:
            return "used_up"
        return "scheduled" if at < self.starts_at else "live"


class OfferCounter(Model):
    """The redemptions of an offer that count towards its cap: one row per offer.

    `redeemed` is maintained only when there is a cap (`max_redemptions`), and compared with it in the same row. It is
    not a column of `offer`, so that it can be distributed together with the redemptions (docs/operations/scaling.md).
    Therefore no foreign key of `offer` can require the row: without it, or if only one of the two has a cap, nothing is
    redeemed.
    """

    __tablename__ = "offer_counter"
    offer_id: Mapped[int] = mapped_column(ForeignKey("offer.id"), primary_key=True)
    max_redemptions: Mapped[int | None] = mapped_column(BigInteger)
    redeemed: Mapped[int] = mapped_column(BigInteger, server_default="0")

    __table_args__ = (
        CheckConstraint("redeemed >= 0 and (max_redemptions is null or redeemed <= max_redemptions)", name="redeemed"),
        # Leaves space in each page for HOT updates of the counter.
        {"postgresql_with": {"fillfactor": 50}},
    )


class OfferCode(Model):
    """A code that an offer has or had.

    It is accepted until it is closed and never becomes available to another offer. `Offer.code` is the current one; the
    other open ones are aliases, which emails and posters may still contain. The code of a new offer is reserved before
    the offer is inserted, so `offer_id` has no foreign key.
    """

    __tablename__ = "offer_code"
    code: Mapped[str] = mapped_column(Text(collation="C"), primary_key=True)
    offer_id: Mapped[int] = mapped_column(BigInteger)
    code_as_written: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    closed_at: Mapped[datetime | None]

    # The target of the foreign key of an offer, and the index that finds the codes of an offer.
    __table_args__ = (UniqueConstraint("offer_id", "code", "code_as_written"),)


def normalise_code(text: str) -> str:
    """Return a code as NFKC in upper case without spaces and dashes, for comparisons.

    :raises InvalidInput: `code_invalid` when the result is empty, too long or has characters beyond A-Z and 0-9.
    """
    is_too_long = len(text) > 4 * MAX_CODE_LENGTH
    if not is_too_long:
        folded = unicodedata.normalize("NFKC", text).upper()
        code = "".join(character for character in folded if character not in DASHES and not character.isspace())
        is_too_long = len(code) > 2 * MAX_CODE_LENGTH
        if code and not is_too_long and CODE_ALPHABET.issuperset(code):
            return code
    message = _("A code can only have letters from A to Z and digits.")
    if is_too_long:
        message = _("This code is too long. Check what you entered.")
    raise InvalidInput(FieldError("code", "code_invalid", message))
