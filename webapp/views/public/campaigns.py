"""Customer pages of campaigns: the way out of the mails."""

from __future__ import annotations

from flask import Blueprint, Response, render_template

from webapp.campaigns import tokens as campaign_tokens
from webapp.core import formatting
from webapp.customers import queries as customer_queries
from webapp.customers.suppressions import actions as suppression_actions
from webapp.customers.suppressions import queries as suppression_queries
from webapp.redemptions.personal_links import PREVIEW_CUSTOMER_ID
from webapp.views.public.blueprint import allow_cross_origin

blueprint = Blueprint("campaigns", __name__)


@blueprint.get("/u/<token>")
def confirm_unsubscribe(token: str) -> Response:
    """The button that ends the mails. Looking changes nothing: mail scanners open links."""
    return _render_page(token)


@blueprint.post("/u/<token>")
@allow_cross_origin
def unsubscribe(token: str) -> Response:
    """End the mails: by the button, or by a mail provider for its user (RFC 8058), without login or redirect.

    The body is not read: whatever a provider sends, and in whatever form, the token alone says who.
    """
    pair = campaign_tokens.parse_unsubscribe_token(token)
    if pair is not None:
        suppression_actions.unsubscribe_customer(*pair)
    return _render_page(token)


@blueprint.post("/u/<token>/back")
def resubscribe(token: str) -> Response:
    """The way back for whoever pressed the button by mistake. Only from our own page, never by a provider."""
    pair = campaign_tokens.parse_unsubscribe_token(token)
    back = pair is not None and suppression_actions.resubscribe_customer(*pair)
    return _render_page(token, back)


def _render_page(token: str, is_back: bool = False) -> Response:
    pair = campaign_tokens.parse_unsubscribe_token(token)
    if pair and pair[0] == PREVIEW_CUSTOMER_ID:
        return Response(render_template("campaigns/unsubscribe_preview.html"), mimetype="text/html")
    customer = customer_queries.find_customer(pair[0]) if pair else None
    if customer is None or customer.erased_at is not None:
        return Response(render_template("campaigns/unsubscribe_unknown.html"), 404, mimetype="text/html")
    listed = suppression_queries.find_suppression_by_email(customer.email)
    body = render_template(
        "campaigns/unsubscribe.html",
        token=token,
        email=formatting.mask_email(customer.email_as_given),
        # Whose address bounced may still ask for it: mails must not start again when the address works again.
        reason=listed.reason if listed is not None and listed.reason != "bounced" else None,
        is_back=is_back,
    )
    return Response(body, mimetype="text/html")
