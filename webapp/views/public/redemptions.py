"""Public pages for redemptions: the form, the personal link and the receipt."""

from __future__ import annotations

import segno
from flask import Blueprint, Response, render_template, request
from markupsafe import Markup

from webapp.core.errors import InvalidInput
from webapp.core.rate_limit import RateLimit, TooManyRequests, client_address, email_attempt_key, limit_requests
from webapp.core.request_limits import get_form_or_empty
from webapp.customers import queries as customer_queries
from webapp.mail import locales
from webapp.redemptions import facts as redemption_facts
from webapp.redemptions import form_redemption, group_commit, guessing, personal_links, receipts, refusals
from webapp.redemptions import queries as redemption_queries
from webapp.redemptions.errors import RedemptionRefused
from webapp.redemptions.form_redemption import LinkEmailRequested
from webapp.redemptions.queries import RedemptionRecord
from webapp.redemptions.rules import RedemptionRequest, evaluate
from webapp.views import rendering
from webapp.views.public.forms import RedeemForm

blueprint = Blueprint("redemptions", __name__)


_email_limit = RateLimit("redeem by email and address", "20 per 5 minutes")
# Counts failed attempts only: a request for a popular offer that is used up is not guessing.
_failed_email_limit = RateLimit("redeem by email", "100 per 10 minutes")
# A larger form is not shown again to a client that sends too many.
_MAX_THROTTLED_FORM_BYTES = 16 * 1024


def _link_rate_limit_key() -> str:
    """Return the rate limit key of a personal link.

    For an invalid token, this is the client address.
    """
    ids = personal_links.parse_personal_token((request.view_args or {})["token"])
    return f"link:{ids[0]}:{ids[1]}" if ids else f"link:{client_address()}"


@blueprint.get("/redeem")
def redeem_form() -> Response:
    """Show the form for a code and an email address.

    A GET redeems nothing, because mail scanners open links.
    """
    return _render_page("redemptions/redeem.html", form=RedeemForm(code=request.args.get("code", "")[:200]))


@blueprint.post("/redeem")
@limit_requests("60 per minute")
def redeem() -> Response:
    """Redeem a code: show the receipt, or the submitted form with the refusal.

    While the client address exceeds its limit of customers, the personal link is emailed instead.
    """
    form = RedeemForm(request.form)
    email_key = email_attempt_key(form.email.data or "")
    _email_limit.count(email_key, client_address())
    _failed_email_limit.check(email_key)
    try:
        redemption_request = form.to_request()
        # Loaded before the write, so that the receipt needs no connection.
        rendering.load_shop()
        with form_redemption.count_attempt(redemption_request, client_address()):
            record = group_commit.redeem(redemption_request)
    except InvalidInput as error:
        rendering.add_form_errors(form, error)
        return _render_page("redemptions/redeem.html", 422, form=form)
    except LinkEmailRequested:
        return _render_page("redemptions/link_emailed.html", 202, form=form)
    except RedemptionRefused as refusal:
        reason, offer = refusal.evaluation.public_reason or refusal.reason, refusal.facts.offer
        if reason in ("not_found", "customer_not_eligible"):
            _failed_email_limit.count(email_key)
        if offer is not None and reason == "customer_not_eligible":
            guessing.record_failed_attempt(offer.id)
        if offer is not None and refusal.facts.customer_id is not None and reason == "already_redeemed":
            receipts.enqueue_receipt(offer.id, refusal.facts.customer_id)
        message = refusals.format_public_message(reason, offer, _get_locale(None))
        status = 404 if reason == "not_found" else 409
        return _render_page("redemptions/redeem.html", status, form=form, refusal=message)
    return _render_receipt(record)


@blueprint.errorhandler(TooManyRequests)
def handle_too_many_requests(error: TooManyRequests) -> Response:
    """Show the form as it was submitted and suggest the personal link.

    Requests of other clients do not count towards the rate limit of the link.
    """
    if request.endpoint == "public.redemptions.redeem":
        message = refusals.format_throttle_message(error.wait_text)
        is_small = (request.content_length or 0) <= _MAX_THROTTLED_FORM_BYTES
        form = RedeemForm(get_form_or_empty() if is_small else None)
        response = _render_page("redemptions/redeem.html", 429, form=form, refusal=message)
    else:
        response = _render_page("redemptions/link_wait.html", 429, message=error.message)
    response.headers["Retry-After"] = str(error.retry_after_seconds)
    return response


@blueprint.get("/r/<token>")
def personal_link(token: str) -> Response:
    """Show the offer to the owner of the link, or the receipt after it was redeemed.

    A GET redeems nothing, because mail scanners open links.
    """
    ids = personal_links.parse_personal_token(token)
    if ids and ids[1] == personal_links.PREVIEW_CUSTOMER_ID:
        return _render_page("redemptions/link_preview.html")
    facts = redemption_facts.load_facts([_build_redemption_request(ids)])[0] if ids else None
    if facts is None or facts.offer is None or facts.customer_id is None:
        return _render_page("redemptions/link_unknown.html", 404)
    record = redemption_queries.find_current_redemption(facts.offer.id, facts.customer_id) if facts.redemption else None
    if record is not None:
        return _render_receipt(record, already_redeemed=True)
    reason, locale = evaluate(facts).reason, _get_locale(facts.customer_id)
    return _render_page(
        "redemptions/link.html",
        200 if reason is None else 409,
        token=token,
        offer=facts.offer,
        email=facts.email,
        locale=locale,
        refusal=refusals.format_link_message(reason, facts.offer, locale) if reason else None,
    )


@blueprint.post("/r/<token>")
@limit_requests("60 per minute")
@limit_requests("20 per 5 minutes", key_func=_link_rate_limit_key)
def redeem_personal_link(token: str) -> Response:
    """Redeem the offer of a personal link: show the receipt or the refusal."""
    ids = personal_links.parse_personal_token(token)
    if ids is None:
        return _render_page("redemptions/link_unknown.html", 404)
    if ids[1] == personal_links.PREVIEW_CUSTOMER_ID:
        return _render_page("redemptions/link_preview.html")
    rendering.load_shop()
    try:
        return _render_receipt(group_commit.redeem(_build_redemption_request(ids)))
    except RedemptionRefused as refusal:
        facts = refusal.facts
        record = redemption_queries.find_current_redemption(*ids) if refusal.reason == "already_redeemed" else None
        if record is not None:
            return _render_receipt(record, already_redeemed=True)
        if facts.offer is None or facts.customer_id is None:
            return _render_page("redemptions/link_unknown.html", 404)
        message = refusals.format_link_message(refusal.reason, facts.offer, _get_locale(facts.customer_id))
        return _render_page(
            "redemptions/link.html", 409, token=token, offer=facts.offer, email=facts.email, refusal=message
        )


def _build_redemption_request(ids: tuple[int, int]) -> RedemptionRequest:
    return RedemptionRequest(channel="link", offer_id=ids[0], customer_id=ids[1])


def _render_receipt(record: RedemptionRecord, already_redeemed: bool = False) -> Response:
    # segno sets presentation attributes only; the Content-Security-Policy allows no style attributes.
    qr_code = segno.make(record.public_id, error="m").svg_inline(scale=4, border=2, omitsize=True)
    return _render_page(
        "redemptions/receipt.html",
        redemption=record,
        already_redeemed=already_redeemed,
        locale=locales.resolve_locale(record.customer_locale, rendering.load_shop().locale),
        qr=Markup(qr_code),  # noqa: S704
    )


def _get_locale(customer_id: int | None) -> str:
    """Return the locale of the customer if it is supported, else that of the shop."""
    customer = customer_queries.find_customer(customer_id) if customer_id is not None else None
    return locales.resolve_locale(customer.locale if customer is not None else None, rendering.load_shop().locale)


def _render_page(template: str, status: int = 200, **values: object) -> Response:
    return Response(render_template(template, **values), status, mimetype="text/html")
