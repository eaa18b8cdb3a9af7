"""Messages for refusals: one or two sentences that say what to do next."""

from __future__ import annotations

from zoneinfo import ZoneInfo

from flask_babel import gettext as _

from webapp.core import formatting
from webapp.redemptions.rules import OfferFacts, RefusalReason


def format_staff_message(reason: RefusalReason, offer: OfferFacts | None) -> str:
    """Return the message for staff and API clients, who may know everything."""
    if reason == "not_found" or offer is None:
        return _("No offer has this code. Check it for typing errors.")
    if reason == "offer_not_started":
        return _("This offer starts on %(start)s.", start=_format_start(offer, "en"))
    if reason == "offer_expired":
        return _("This offer ended on %(day)s.", day=_format_last_day(offer, "en"))
    messages: dict[RefusalReason, str] = {
        "offer_paused": _("This offer is paused."),
        "offer_exhausted": _("This offer has reached its redemption limit."),
        "customer_unknown": _(
            "This customer does not exist. Import them first, or check the email address for typing errors."
        ),
        "customer_not_eligible": _("This offer is limited to an audience that the customer is not in."),
        "personal_code_required": _(
            "This offer requires the customer's personal code, which is in the email they received."
        ),
        "already_redeemed": _("This customer has already redeemed this offer. It can be redeemed only once."),
    }
    return messages[reason]


def format_public_message(reason: RefusalReason, offer: OfferFacts | None, locale: str = "en") -> str:
    """Return the message for an unauthenticated client.

    It never reveals whether an email address is known.

    :param locale: the locale of days and times.
    """
    if reason == "not_found" or offer is None:
        return _("We don't recognise this code. Check it for typing errors, or press the button in our email.")
    if reason == "offer_not_started":
        return _("This offer starts on %(start)s. Please come back then.", start=_format_start(offer, locale))
    if reason == "offer_expired":
        return _(
            "This offer ended on %(day)s. Look out for our next email.",
            day=_format_last_day(offer, locale),
        )
    if reason == "offer_paused":
        return _("This offer is paused at the moment. Please try again later.")
    if reason == "offer_exhausted":
        return _("This offer has reached its limit and can't be redeemed any more. Look out for our next email.")
    if reason == "already_redeemed":
        return _(
            "This offer has already been redeemed with this email address. We will email you the receipt "
            "(at most once an hour)."
        )
    return _(
        "This code can't be redeemed with this email address. "
        "Enter both exactly as they are in our email to you, or press the button in it."
    )


def format_link_message(reason: RefusalReason, offer: OfferFacts | None, locale: str = "en") -> str:
    """Return the message for a customer who is identified by a personal link."""
    if reason in ("customer_not_eligible", "customer_unknown", "personal_code_required"):
        return _("This offer is no longer available to you. Please contact us if you think it should be.")
    return format_public_message(reason, offer, locale)


def format_throttle_message(wait: str) -> str:
    """Return the message for too many attempts, perhaps by another client."""
    return _(
        "Too many attempts. Please wait %(wait)s and try again, or use the link in our email to you: "
        "it works right away.",
        wait=wait,
    )


def _format_start(offer: OfferFacts, locale: str) -> str:
    local = offer.starts_at.astimezone(ZoneInfo(offer.time_zone))
    day = formatting.bidi_isolate(formatting.format_day(offer.starts_at, offer.time_zone, locale))
    return day if (local.hour, local.minute) == (0, 0) else _("%(day)s at %(time)s", day=day, time=f"{local:%H:%M}")


def _format_last_day(offer: OfferFacts, locale: str) -> str:
    if offer.ends_at is None:
        return ""
    return formatting.bidi_isolate(formatting.format_last_day(offer.ends_at, offer.time_zone, locale))
