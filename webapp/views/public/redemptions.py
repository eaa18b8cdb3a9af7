"""Customer pages of redemptions: the form, the personal link, the receipt."""

from __future__ import annotations

import segno
from flask import Blueprint, Response, g, render_template, request
from markupsafe import Markup

from webapp.core.email_addresses import normalise_email
from webapp.core.errors import InvalidInput
from webapp.core.rate_limit import TooManyRequests, client_address, combined_key, form_field_key, limiter
from webapp.customers import queries as customer_queries
from webapp.mail import locales
from webapp.redemptions import facts as redemption_facts
from webapp.redemptions import group_commit, guessing, personal_links, receipts, refusals
from webapp.redemptions import queries as redemption_queries
from webapp.redemptions.errors import RedemptionRefused
from webapp.redemptions.queries import RedemptionRecord
from webapp.redemptions.rules import RedemptionRequest, evaluate
from webapp.shop import queries as shop_queries
from webapp.views import rendering
from webapp.views.public.forms import RedeemForm

blueprint = Blueprint("redemptions", __name__)


_email_key = form_field_key("email", normalise_email)


def _is_failed_attempt(response: Response) -> bool:
    """Whether somebody seems to be guessing who is a customer; a used-up offer that is in demand is no guess."""
    return bool(g.get("miss", False))


def _link_key() -> str:
    """Whose link is pressed. What is no link of ours is counted by who sends it."""
    pair = personal_links.parse_personal_token((request.view_args or {})["token"])
    return f"link:{pair[0]}:{pair[1]}" if pair else f"link:{client_address()}"


@blueprint.get("/redeem")
def redeem_form() -> Response:
    """Code and e-mail. Looking redeems nothing."""
    return _render_page("redemptions/redeem.html", form=RedeemForm(code=request.args.get("code", "")[:200]))


@blueprint.post("/redeem")
@limiter.limit("60 per minute", key_func=client_address)
@limiter.limit("20 per 5 minutes", key_func=combined_key(_email_key, client_address))
@limiter.limit("100 per 10 minutes", key_func=_email_key, deduct_when=_is_failed_attempt)
def redeem() -> Response:
    """Redeem what was typed: the receipt, or the form as it was typed with one plain sentence above it."""
    typed_in = RedeemForm(request.form)
    try:
        ask = typed_in.to_request()
        if guessing.is_code_blocked(ask.code or ""):
            raise TooManyRequests(guessing.BLOCK_RETRY_AFTER_SECONDS)
        done = group_commit.redeem(ask)
    except InvalidInput as error:
        rendering.add_form_errors(typed_in, error)
        return _render_page("redemptions/redeem.html", 422, form=typed_in)
    except RedemptionRefused as refused:
        reason, offer = refused.evaluation.public_reason or refused.reason, refused.facts.offer
        g.miss = reason in ("not_found", "customer_not_eligible")
        if offer is not None and reason == "customer_not_eligible":
            guessing.record_failed_attempt(offer.id)
        if offer is not None and refused.facts.customer_id is not None and reason == "already_redeemed":
            receipts.enqueue_receipt(offer.id, refused.facts.customer_id)
        sentence = refusals.format_public_message(reason, offer, _get_locale(None))
        return _render_page(
            "redemptions/redeem.html", 404 if reason == "not_found" else 409, form=typed_in, refusal=sentence
        )
    return _render_receipt(done)


@blueprint.errorhandler(TooManyRequests)
def handle_too_many_requests(error: TooManyRequests) -> Response:
    """Keep what was typed, and show the way that strangers can't close: the link has limits of its own."""
    if request.endpoint == "public.redemptions.redeem":
        sentence = refusals.format_throttle_message(error.wait_text)
        answer = _render_page("redemptions/redeem.html", 429, form=RedeemForm(request.form), refusal=sentence)
    else:
        answer = _render_page("redemptions/link_wait.html", 429, sentence=error.message)
    answer.headers["Retry-After"] = str(error.retry_after_seconds)
    return answer


@blueprint.get("/r/<token>")
def personal_link(token: str) -> Response:
    """The form filled in for whom the link belongs to, or the receipt once it was used. Looking redeems nothing."""
    pair = personal_links.parse_personal_token(token)
    if pair and pair[1] == personal_links.PREVIEW_CUSTOMER_ID:
        return _render_page("redemptions/link_preview.html")
    facts = redemption_facts.load_facts([_build_request(pair)])[0] if pair else None
    if facts is None or facts.offer is None or facts.customer_id is None:
        return _render_page("redemptions/link_unknown.html", 404)
    done = redemption_queries.find_live_redemption(facts.offer.id, facts.customer_id) if facts.redemption else None
    if done is not None:
        return _render_receipt(done, again=True)
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
@limiter.limit("60 per minute", key_func=client_address)
@limiter.limit("20 per 5 minutes", key_func=_link_key)
def redeem_personal_link(token: str) -> Response:
    """The one button of the personal link."""
    pair = personal_links.parse_personal_token(token)
    if pair is None:
        return _render_page("redemptions/link_unknown.html", 404)
    if pair[1] == personal_links.PREVIEW_CUSTOMER_ID:
        return _render_page("redemptions/link_preview.html")
    try:
        return _render_receipt(group_commit.redeem(_build_request(pair)))
    except RedemptionRefused as refused:
        facts = refused.facts
        done = redemption_queries.find_live_redemption(*pair) if refused.reason == "already_redeemed" else None
        if done is not None:
            return _render_receipt(done, again=True)
        if facts.offer is None or facts.customer_id is None:
            return _render_page("redemptions/link_unknown.html", 404)
        sentence = refusals.format_link_message(refused.reason, facts.offer, _get_locale(facts.customer_id))
        return _render_page(
            "redemptions/link.html", 409, token=token, offer=facts.offer, email=facts.email, refusal=sentence
        )


def _build_request(pair: tuple[int, int]) -> RedemptionRequest:
    return RedemptionRequest(channel="link", offer_id=pair[0], customer_id=pair[1])


def _render_receipt(done: RedemptionRecord, again: bool = False) -> Response:
    # Presentation attributes only: the policy of the pages allows no style of an element's own.
    code = segno.make(done.public_id, error="m").svg_inline(scale=4, border=2, omitsize=True)
    return _render_page(
        "redemptions/receipt.html",
        done=done,
        again=again,
        locale=_get_locale(done.customer_id),
        qr=Markup(code),  # noqa: S704
    )


def _get_locale(customer_id: int | None) -> str:
    """In which days and money are written: the customer's, if they have one that is known, else the shop's."""
    customer = customer_queries.find_customer(customer_id) if customer_id is not None else None
    return locales.resolve_locale(customer.locale if customer is not None else None, shop_queries.get_shop().locale)


def _render_page(template: str, status: int = 200, **values: object) -> Response:
    return Response(render_template(template, **values), status, mimetype="text/html")
