"""Every refusal as one plain sentence that says what to do next."""

from __future__ import annotations

from zoneinfo import ZoneInfo

from webapp.core import formatting
from webapp.redemptions.rules import OfferFacts, RefusalReason


def format_staff_message(reason: RefusalReason, offer: OfferFacts | None) -> str:
    """For those who may know everything: staff and the holders of an API key."""
    if reason == "customer_unknown":
        return "This customer is not known here; import them first or check the e-mail for typing errors."
    if reason == "customer_not_eligible":
        return "This offer is for an audience that the customer does not belong to."
    if reason == "personal_code_required":
        return "This offer needs the customer's own personal code; it stands in the mail they got."
    if reason == "already_redeemed":
        return "This customer has used this offer already; an offer can be used once."
    return format_public_message(reason, offer)


def format_public_message(reason: RefusalReason, offer: OfferFacts | None, locale: str = "en") -> str:
    """For the customer, or whoever says to be the customer. Never tells whether an e-mail is known.

    :param locale: in which a day is written.
    """
    if reason == "not_found" or offer is None:
        return "We don't know this code; check it for typing errors, or press the button in our mail."
    if reason == "offer_not_started":
        return f"This offer starts on {_format_start(offer, locale)}; please come back then."
    if reason == "offer_expired":
        return f"This offer ended on {_format_last_day(offer, locale)}; watch your mail for the next one."
    if reason == "offer_paused":
        return "This offer is paused at the moment; please try again later."
    if reason == "offer_exhausted":
        return "This offer is used up: all there was has been taken. Watch your mail for the next one."
    if reason == "already_redeemed":
        return "This offer was used already with this e-mail address; we mail the receipt to it, at most once an hour."
    return (
        "This code can't be used with this e-mail address; "
        "take both exactly as they stand in our mail to you, or press the button in it."
    )


def format_link_message(reason: RefusalReason, offer: OfferFacts | None, locale: str = "en") -> str:
    """For whoever came by a personal link, which has proven who it is."""
    if reason in ("customer_not_eligible", "customer_unknown", "personal_code_required"):
        return "This offer is not for you any more; please ask us if you think it should be."
    return format_public_message(reason, offer, locale)


def format_throttle_message(wait: str) -> str:
    """For whoever types, when tries are used up, perhaps by somebody else."""
    return f"Too many tries. Please wait {wait} and try again, or use the link in our mail to you: it works at once."


def _format_start(offer: OfferFacts, locale: str) -> str:
    local = offer.starts_at.astimezone(ZoneInfo(offer.time_zone))
    day = formatting.bidi_isolate(formatting.format_day(offer.starts_at, offer.time_zone, locale))
    return day if (local.hour, local.minute) == (0, 0) else f"{day} at {local:%H:%M}"


def _format_last_day(offer: OfferFacts, locale: str) -> str:
    return (
        formatting.bidi_isolate(formatting.format_last_day(offer.ends_at, offer.time_zone, locale))
        if offer.ends_at
        else ""
    )
