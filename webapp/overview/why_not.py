"""Why may this customer redeem this offer, or why not: every check of the rule with the fact behind it.

The rule itself is `verdict`; here is only told, in plain sentences, what it saw.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

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
    RefusalReason,
    evaluate,
)


@dataclass(frozen=True, slots=True)
class CheckExplanation:
    """A check with its answer and the fact behind it in one sentence."""

    check: EligibilityCheck
    detail: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """The conclusion first, then every check in the order of the rule.

    `uses` are all of this customer's redemptions of this offer, the newest first, with those that were undone;
    `mails` those that they got about it.
    """

    facts: RedemptionFacts
    reason: RefusalReason | None
    # What whoever redeems by a key or by hand is told.
    detail: str
    checks: tuple[CheckExplanation, ...]
    redemptions: tuple[RedemptionRecord, ...]
    emails: tuple[CampaignDelivery, ...]

    @property
    def failed_detail(self) -> str:
        """The fact behind the conclusion: that of the first check that failed."""
        return next((line.detail for line in self.checks if line.check.passed is False), self.detail)


def explain_eligibility(ask: RedemptionRequest) -> Explanation:
    """What redeeming would answer at this moment, and every check on the way. Writes nothing."""
    facts = redemption_facts.load_facts([ask])[0]
    if facts.is_code_closed:
        facts = dataclasses.replace(facts, offer=None, redemption=None)
    judged = evaluate(facts)
    offer = facts.offer
    audience = customer_queries.find_audience(offer.audience_id) if offer is not None and offer.audience_id else None
    uses: tuple[RedemptionRecord, ...] = ()
    mails: tuple[CampaignDelivery, ...] = ()
    if offer is not None and facts.customer_id is not None:
        uses = tuple(
            done
            for done in redemption_queries.list_customer_redemptions(facts.customer_id)
            if done.offer_id == offer.id
        )
        mails = tuple(
            mail
            for mail in delivery_queries.list_customer_deliveries(facts.customer_id)
            if mail.campaign.offer_id == offer.id
        )
    told = _CheckDescriber(
        ask, facts, audience.name if audience else None, _describe_closed_code(ask) if offer is None else None, uses
    )
    return Explanation(
        facts,
        judged.reason,
        refusals.format_staff_message(judged.reason, offer)
        if judged.reason
        else f"{told.customer_label} can redeem {told.offer_label} now.",
        tuple(CheckExplanation(check, told.describe(check)) for check in judged.checks),
        uses,
        mails,
    )


def _describe_closed_code(ask: RedemptionRequest) -> str | None:
    """What is known of a code that worked once."""
    prefix, _ = personal_codes.split_personal_code(ask.code or "")
    code = offer_queries.find_closed_code([code for code in (ask.code, prefix) if code])
    offer = offer_queries.find_offer(code.offer_id) if code else None
    if code is None or offer is None:
        return None
    closed = formatting.format_datetime(code.closed_at, offer.time_zone)
    return (
        f"{code.code_as_written} was a code of “{offer.name}”, closed on {closed}; now it has {offer.code_as_written}."
    )


@dataclass(frozen=True, slots=True)
class _CheckDescriber:
    """Sentences about one pair."""

    request: RedemptionRequest
    facts: RedemptionFacts
    audience_name: str | None
    closed_code_detail: str | None
    redemptions: tuple[RedemptionRecord, ...]

    @property
    def customer_label(self) -> str:
        return self.facts.email or self.request.email or f"the source id {self.request.source_id}"

    @property
    def offer_label(self) -> str:
        return f"“{self.facts.offer.name}”" if self.facts.offer else "the offer"

    def describe(self, check: EligibilityCheck) -> str:
        offer = self.facts.offer
        if check.name == "code":
            return self._describe_code(offer)
        if check.name == "customer":
            return self._describe_customer()
        if offer is None:
            return "Not asked: the code is not known."
        if check.passed is None:
            return "Not asked: the customer is not known."
        return self._describe_offer_check(check, offer)

    def _describe_offer_check(self, check: EligibilityCheck, offer: OfferFacts) -> str:
        match check.name:
            case "unused":
                return self._describe_unused()
            case "window":
                return _describe_window(offer, check)
            case "status":
                return "The offer is paused." if offer.is_paused else "The offer is not paused."
            case "audience":
                return self._describe_audience()
            case "personal_code":
                return self._describe_personal_code(offer)
            case _:
                return _describe_cap(offer)

    def _describe_code(self, offer: OfferFacts | None) -> str:
        if offer is None:
            return self.closed_code_detail or f"No offer has the code {self.request.code}."
        if self.facts.personal_code_status != "none":
            return f"{self.request.code} is a code of {self.offer_label} with a personal ending."
        if self.request.code != normalise_code(offer.code):
            older, label = self.request.code, self.offer_label
            return f"{older} is an older code of {label}, which still works; now it has {offer.code}."
        return f"{self.request.code} is the code of {self.offer_label}."

    def _describe_customer(self) -> str:
        if self.facts.customer_id is not None:
            return f"{self.customer_label} is a customer."
        if self.request.email is not None:
            return f"Nobody has the e-mail {self.request.email}."
        return f"Nobody has the source id {self.request.source_id}."

    def _describe_unused(self) -> str:
        use = self.facts.redemption
        if use is not None:
            through = {"form": "the form", "link": "the personal link", "api": "the API", "staff": "staff"}[use.channel]
            return f"Used on {_format_time(use.redeemed_at, self.facts.offer)} through {through}."
        undone = next((done.row for done in self.redemptions if done.row.rolled_back_at), None)
        if undone is not None:
            return f"Not used: the redemption of {_format_time(undone.redeemed_at, self.facts.offer)} was undone."
        return "Not used by this customer so far."

    def _describe_audience(self) -> str:
        if self.audience_name is None:
            return "The offer is for everyone known."
        is_member = "is a member" if self.facts.is_in_audience else "is not a member"
        return f"Audience: {self.audience_name}; {self.customer_label} {is_member}."

    def _describe_personal_code(self, offer: OfferFacts) -> str:
        if self.facts.personal_code_status == "right":
            return "The personal code is this customer's."
        if self.facts.personal_code_status == "wrong":
            return "The personal code is not this customer's: it is somebody else's, or mistyped."
        if offer.personal_code_required:
            return "The offer needs the personal code that stands in the customer's own mail; this is the shared one."
        return "The shared code is enough for this offer."


def _describe_window(offer: OfferFacts, check: EligibilityCheck) -> str:
    if check.reason == "offer_not_started" and not check.passed:
        return f"Starts on {_format_boundary(offer.starts_at, offer, closes=False)}."
    if offer.ends_at is None:
        return f"Open since {_format_boundary(offer.starts_at, offer, closes=False)}, without an end."
    if not check.passed:
        return f"Ended on {_format_boundary(offer.ends_at, offer, closes=True)}."
    start = _format_boundary(offer.starts_at, offer, closes=False)
    end = _format_boundary(offer.ends_at, offer, closes=True)
    return f"Open since {start}, ends on {end}."


def _describe_cap(offer: OfferFacts) -> str:
    if offer.max_redemptions is None:
        return "There is no limit to how many may redeem."
    if offer.redeemed >= offer.max_redemptions:
        return f"All {formatting.format_number(offer.max_redemptions)} are taken."
    return f"{formatting.format_number(offer.redeemed)} of {formatting.format_number(offer.max_redemptions)} are taken."


def _format_boundary(at: datetime, offer: OfferFacts, *, closes: bool) -> str:
    """31 May 2026 at 24:00 Europe/Berlin: what ends at midnight ends with the day before."""
    local = at.astimezone(ZoneInfo(offer.time_zone))
    if closes and (local.hour, local.minute, local.second) == (0, 0, 0):
        return f"{formatting.format_day(at - timedelta(seconds=1), offer.time_zone)} at 24:00 {offer.time_zone}"
    return f"{formatting.format_day(at, offer.time_zone)} at {local:%H:%M} {offer.time_zone}"


def _format_time(at: datetime, offer: OfferFacts | None) -> str:
    return formatting.format_datetime(at, offer.time_zone if offer else "UTC")
