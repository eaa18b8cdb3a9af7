"""Redeem with the public form, which anyone can use with any email address."""

from __future__ import annotations

from webapp.core.rate_limit import TooManyRequests
from webapp.redemptions import address_limit, group_commit, guessing, link_emails
from webapp.redemptions import facts as redemption_facts
from webapp.redemptions.address_limit import AddressLimitReached
from webapp.redemptions.errors import RedemptionRefused, RedemptionUnavailable
from webapp.redemptions.queries import RedemptionRecord
from webapp.redemptions.rules import OFFER_REASONS, RedemptionRequest, evaluate


def redeem_by_form(request: RedemptionRequest, address: str) -> RedemptionRecord | None:
    """Redeem the offer of a code for the customer with an email address.

    :param address: key of the client address, see `rate_limit.client_address`.
    :returns: the redemption; None when the address exceeds its limit of customers. Then nothing is redeemed, and the
        personal link or the receipt is emailed if the customer may get it.
    :raises TooManyRequests: while failed attempts block the code.
    :raises RedemptionRefused: with the first eligibility check that failed. Above the limit, only with checks of the
        offer, so that the result is the same for every email address.
    :raises DomainError: as `group_commit.redeem` does.
    """
    code, email = request.code or "", request.email or ""
    if guessing.is_code_blocked(code):
        raise TooManyRequests(guessing.BLOCK_RETRY_AFTER_SECONDS)
    try:
        counted = address_limit.count_customer(address, code, email)
    except AddressLimitReached:
        _request_link_email(request)
        return None
    try:
        return group_commit.redeem(request)
    except RedemptionRefused as refusal:
        # All other refusals are the same for unknown email addresses.
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
