"""Limit redeeming with the public form, which anyone can use with any email address."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from webapp.core.rate_limit import TooManyRequests
from webapp.redemptions import address_limit, guessing, link_emails
from webapp.redemptions import facts as redemption_facts
from webapp.redemptions.address_limit import AddressLimitReached
from webapp.redemptions.errors import RedemptionRefused, RedemptionUnavailable
from webapp.redemptions.rules import OFFER_REASONS, RedemptionRequest, evaluate


class LinkEmailRequested(Exception):
    """The client address exceeds its limit of customers, so nothing is redeemed.

    The personal link or the receipt is emailed if the customer may get it.
    """


@contextmanager
def count_attempt(request: RedemptionRequest, address: str) -> Iterator[None]:
    """Count an attempt with the form; the block redeems and lets a refusal pass.

    The customer counts towards the limit of the client address, unless the refusal is the same for unknown email
    addresses.

    :param address: key of the client address, see `rate_limit.client_address`.
    :raises TooManyRequests: while failed attempts block the code.
    :raises LinkEmailRequested: when the address exceeds its limit.
    :raises RedemptionRefused: when the address exceeds its limit and the offer cannot be redeemed by any customer.
    :raises RedemptionUnavailable: when the address exceeds its limit and the email cannot be enqueued.
    """
    if guessing.is_code_blocked(request.code or ""):
        raise TooManyRequests(guessing.BLOCK_RETRY_AFTER_SECONDS)
    try:
        counted = address_limit.count_customer(address, request.code or "", request.email or "")
    except AddressLimitReached:
        _request_link_email(request)
        raise LinkEmailRequested from None
    try:
        yield
    except RedemptionRefused as refusal:
        if refusal.evaluation.public_reason != "already_redeemed":
            address_limit.uncount_customer(counted)
        raise


def _request_link_email(request: RedemptionRequest) -> None:
    """Have the personal link emailed, by the same statements for every email address."""
    facts = redemption_facts.load_facts([request])[0]
    evaluation = evaluate(facts)
    reason = evaluation.public_reason
    if facts.offer is None or reason in OFFER_REASONS:
        raise RedemptionRefused(reason or "not_found", evaluation, facts)
    if not link_emails.enqueue_link_email(facts.offer.id, facts.customer_id):
        raise RedemptionUnavailable()
