"""Discounts: a percentage, or an amount in minor units of a currency."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from typing import Literal

from flask_babel import gettext as _

from webapp.core.errors import FieldError, InvalidInput

# A currency (ISO 4217) and a percentage in JSON, as regular expressions of Python and of JSON Schema.
CURRENCY_PATTERN = r"^[A-Z]{3}$"
PERCENT_PATTERN = r"^[0-9]{1,3}(\.[0-9]{1,2})?$"


@dataclass(frozen=True)
class Discount:
    """A percentage of an order, or a fixed amount.

    :param percent: the percentage, with at most two decimals.
    :param amount: the amount in minor units of `currency` (ISO 4217).
    """

    type: Literal["percent", "amount"]
    percent: Decimal | None = None
    amount: int | None = None
    currency: str | None = None

    def amount_off(self, amount: int, currency: str) -> int:
        """Return the discount on an order, rounded half up and at most its amount.

        :param amount: the amount of the order in minor units.
        :raises InvalidInput: `currency_mismatch` when a fixed amount is in another currency than the order.
        """
        if self.type == "percent" and self.percent is not None:
            unrounded = Decimal(amount) * self.percent / 100
            return min(amount, int(unrounded.quantize(Decimal(1), ROUND_HALF_UP)))
        if self.currency != currency:
            message = _("This offer is for orders in %(currency)s.", currency=self.currency)
            raise InvalidInput(FieldError("order.currency", "currency_mismatch", message))
        return min(amount, self.amount or 0)
