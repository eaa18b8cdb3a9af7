"""Types of the fixtures that create offers, customers and emails."""

from __future__ import annotations

from collections.abc import Callable

from webapp.customers.models import Customer
from webapp.offers.models import Offer

MakeCustomer = Callable[..., Customer]
MakeOffer = Callable[..., Offer]
WriteEmail = Callable[..., str]
