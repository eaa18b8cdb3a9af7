"""Explain the eligibility of a customer for an offer, check by check.

Every check has a sentence about the data that decided it. `webapp.redemptions.rules.evaluate` makes the checks; this
module only describes the facts that it used.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from flask_babel import gettext as _
from flask_babel import ngettext

from webapp.campaigns.deliveries import queries as delivery_queries
from webapp.campaigns.deliveries.queries import CampaignDelivery
from webapp.core import formatting
from webapp.customers import queries as customer_queries
from webapp.offers import queries as offer_queries
from webapp.offers.models import normalise_code
from webapp.redemptions import facts as redemption_facts
from webapp.redemptions import personal_codes, refusals
from webapp.redemptions import queries as redemption_queries
from webapp.redemptions.queries import RedemptionRecord
from webapp.redemptions.rules import (
    EligibilityCheck,
    OfferFacts,
    RedemptionFacts,
    RedemptionRequest,
    RedemptionRow,
    RefusalReason,
    evaluate,
    is_cap_reached,
)


@dataclass(frozen=True, slots=True)
class CheckExplanation:
    """A check with its result and one sentence about the data that decided it."""

    check: EligibilityCheck
    detail: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """The result, then every eligibility check in order.

    :param reason: the reason of the refusal; None when the customer may redeem.
    :param detail: the result in one sentence, as in the API and on the form for staff.
    :param redemptions: the customer's redemptions of the offer, newest first, including those rolled back.
    :param emails: the customer's emails about the offer.
    """

    facts: RedemptionFacts
    reason: RefusalReason | None
    detail: str
    checks: tuple[CheckExplanation, ...]
    redemptions: tuple[RedemptionRecord, ...]
    emails: tuple[CampaignDelivery, ...]

    @property
    def failed_detail(self) -> str:
        """The detail of the first check that failed."""
        return next((explained.detail for explained in self.checks if explained.check.passed is False), self.detail)


def explain_eligibility(request: RedemptionRequest, time_zone: str | None = None) -> Explanation:
    """Explain the result that a redemption would have now, check by check.

    Does not write.

    :param time_zone: of the times of redemptions and closed codes; None means that of the offer. The offer period is
        always in the time zone of the offer.
    """
    facts = redemption_facts.load_facts([request])[0]
    if facts.is_code_closed:
        facts = dataclasses.replace(facts, offer=None, redemption=None)
    evaluation = evaluate(facts)
    offer = facts.offer
    audience = customer_queries.find_audience(offer.audience_id) if offer is not None and offer.audience_id else None
    redemptions: tuple[RedemptionRecord, ...] = ()
    emails: tuple[CampaignDelivery, ...] = ()
    if offer is not None and facts.customer_id is not None:
        redemptions = tuple(
            record
            for record in redemption_queries.list_customer_redemptions(facts.customer_id)
            if record.offer_id == offer.id
        )
        emails = tuple(
            delivery
            for delivery in delivery_queries.list_customer_deliveries(facts.customer_id)
            if delivery.campaign.offer_id == offer.id
        )
    describer = _CheckDescriber(
        request,
        facts,
        audience.name if audience else None,
        _describe_closed_code(request, time_zone) if offer is None else None,
        redemptions,
        time_zone or (offer.time_zone if offer else "UTC"),
    )
    if evaluation.reason:
        detail = refusals.format_staff_message(evaluation.reason, offer)
    else:
        detail = _(
            "%(customer)s can redeem %(offer)s now.", customer=describer.customer_label, offer=describer.offer_label
        )
    return Explanation(
        facts,
        evaluation.reason,
        detail,
        tuple(CheckExplanation(check, describer.describe(check)) for check in evaluation.checks),
        redemptions,
        emails,
    )


def _describe_closed_code(request: RedemptionRequest, time_zone: str | None) -> str | None:
    """Describe a code that was closed; None when no offer had it."""
    shared_code = personal_codes.split_personal_code(request.code or "")[0]
    code = offer_queries.find_closed_code([code for code in (request.code, shared_code) if code])
    offer = offer_queries.find_offer(code.offer_id) if code else None
    if code is None or offer is None:
        return None
    return _(
        "%(code)s was a code of “%(offer)s” and was closed on %(time)s. The current code is %(current)s.",
        code=code.code_as_written,
        offer=offer.name,
        time=formatting.format_datetime(code.closed_at, time_zone or offer.time_zone),
        current=offer.code_as_written,
    )


@dataclass(frozen=True, slots=True)
class _CheckDescriber:
    """Describes the checks of one customer and one code."""

    request: RedemptionRequest
    facts: RedemptionFacts
    audience_name: str | None
    closed_code_detail: str | None
    redemptions: tuple[RedemptionRecord, ...]
    time_zone: str

    @property
    def customer_label(self) -> str:
        """The name of the customer in sentences: the email address or the source id."""
        return self.facts.email or self.request.email or self.request.source_id or ""

    @property
    def offer_label(self) -> str:
        """The name of the offer in sentences."""
        return f"“{self.facts.offer.name}”" if self.facts.offer else _("the offer")

    def describe(self, check: EligibilityCheck) -> str:
        """Return the sentence about a check."""
        offer = self.facts.offer
        if check.name == "code":
            return self._describe_code(offer)
        if check.name == "customer":
            return self._describe_customer()
        if offer is None:
            return _("Not checked: the code does not exist.")
        if check.passed is None:
            return _("Not checked: the customer does not exist.")
        return self._describe_offer_check(check, offer)

    def _describe_offer_check(self, check: EligibilityCheck, offer: OfferFacts) -> str:
        match check.name:
            case "unused":
                return self._describe_unused()
            case "window":
                return _describe_window(offer, check)
            case "status":
                return _("The offer is paused.") if offer.is_paused else _("The offer is not paused.")
            case "audience":
                return self._describe_audience()
            case "personal_code":
                return self._describe_personal_code(offer)
            case _:
                return _describe_cap(offer)

    def _describe_code(self, offer: OfferFacts | None) -> str:
        code = self.request.code
        if offer is None:
            return self.closed_code_detail or _("No offer has the code %(code)s.", code=code)
        if self.facts.personal_code_status != "none":
            return _("%(code)s is a code of %(offer)s with a personal suffix.", code=code, offer=self.offer_label)
        if code != normalise_code(offer.code):
            return _(
                "%(code)s is an earlier code of %(offer)s that is still valid. The current code is %(current)s.",
                code=code,
                offer=self.offer_label,
                current=offer.code,
            )
        return _("%(code)s is the code of %(offer)s.", code=code, offer=self.offer_label)

    def _describe_customer(self) -> str:
        if self.facts.customer_id is not None:
            return _("%(customer)s is a customer.", customer=self.customer_label)
        if self.request.email is not None:
            return _("No customer has the email address %(email)s.", email=self.request.email)
        return _("No customer has the source ID %(source_id)s.", source_id=self.request.source_id)

    def _describe_unused(self) -> str:
        redemption = self.facts.redemption
        if redemption is not None:
            return _describe_redemption(redemption, self.time_zone)
        rolled_back_row = next((record.row for record in self.redemptions if record.row.rolled_back_at), None)
        if rolled_back_row is not None:
            time = formatting.format_datetime(rolled_back_row.redeemed_at, self.time_zone)
            return _("Unused: the redemption on %(time)s was undone.", time=time)
        return _("Not redeemed by this customer yet.")

    def _describe_audience(self) -> str:
        if self.audience_name is None:
            return _("The offer is for all customers.")
        names = {"customer": self.customer_label, "audience": self.audience_name}
        if self.facts.is_in_audience:
            return _("%(customer)s is in the audience “%(audience)s”.", **names)
        return _("%(customer)s is not in the audience “%(audience)s”.", **names)

    def _describe_personal_code(self, offer: OfferFacts) -> str:
        if self.facts.personal_code_status == "right":
            return _("The personal code belongs to this customer.")
        if self.facts.personal_code_status == "wrong":
            return _("The personal code does not belong to this customer: it is another customer's, or mistyped.")
        if offer.personal_code_required:
            return _("The offer requires the personal code from the customer's email; this is the shared code.")
        return _("The offer accepts the shared code.")


def _describe_redemption(row: RedemptionRow, time_zone: str) -> str:
    time = formatting.format_datetime(row.redeemed_at, time_zone)
    match row.channel:
        case "form":
            return _("Redeemed on %(time)s with the form.", time=time)
        case "link":
            return _("Redeemed on %(time)s with the personal link.", time=time)
        case "api":
            return _("Redeemed on %(time)s through the API.", time=time)
        case _:
            return _("Redeemed on %(time)s by staff.", time=time)


def _describe_window(offer: OfferFacts, check: EligibilityCheck) -> str:
    start = _format_boundary(offer.starts_at, offer, is_end=False)
    if check.reason == "offer_not_started" and not check.passed:
        return _("Starts on %(start)s.", start=start)
    if offer.ends_at is None:
        return _("Valid from %(start)s, with no end date.", start=start)
    end = _format_boundary(offer.ends_at, offer, is_end=True)
    if not check.passed:
        return _("Was valid until %(end)s.", end=end)
    return _("Valid from %(start)s until %(end)s.", start=start, end=end)


def _describe_cap(offer: OfferFacts) -> str:
    if offer.max_redemptions is None:
        return _("There is no limit on redemptions.")
    limit = formatting.format_number(offer.max_redemptions)
    if is_cap_reached(offer):
        return ngettext(
            "The limit of %(limit)s redemption has been reached.",
            "The limit of %(limit)s redemptions has been reached.",
            offer.max_redemptions,
            limit=limit,
        )
    count = formatting.format_number(offer.redeemed or 0)
    return _("%(count)s of %(limit)s redemptions used.", count=count, limit=limit)


def _format_boundary(at: datetime, offer: OfferFacts, *, is_end: bool) -> str:
    """Format a start or an end, such as “1 May 2026 at 18:00 (Europe/Berlin)”.

    An end at midnight is the end of the day before.
    """
    local = at.astimezone(ZoneInfo(offer.time_zone))
    if is_end and (local.hour, local.minute, local.second) == (0, 0, 0):
        day = formatting.format_day(at - timedelta(seconds=1), offer.time_zone)
        return _("the end of %(day)s (%(time_zone)s)", day=day, time_zone=offer.time_zone)
    day, time = formatting.format_day(at, offer.time_zone), f"{local:%H:%M}"
    return _("%(day)s at %(time)s (%(time_zone)s)", day=day, time=time, time_zone=offer.time_zone)
