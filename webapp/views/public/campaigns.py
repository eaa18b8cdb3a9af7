"""Public pages for campaigns: unsubscribe and resubscribe."""

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
    """Show the unsubscribe button.

    A GET changes nothing, because mail scanners open links.
    """
    return _render_page(token)


@blueprint.post("/u/<token>")
@allow_cross_origin
def unsubscribe(token: str) -> Response:
    """Unsubscribe: from the page, or by one-click request of a mail provider.

    RFC 8058 requires this to work without login or redirect. The body is ignored, because the token alone identifies
    the customer.
    """
    ids = campaign_tokens.parse_unsubscribe_token(token)
    if ids is not None:
        suppression_actions.unsubscribe_customer(ids.customer_id, ids.campaign_id)
    return _render_page(token)


@blueprint.post("/u/<token>/back")
def resubscribe(token: str) -> Response:
    """Undo an unsubscription made by mistake.

    The request is accepted only from the unsubscribe page (same origin).
    """
    ids = campaign_tokens.parse_unsubscribe_token(token)
    is_resubscribed = ids is not None and suppression_actions.resubscribe_customer(ids.customer_id, ids.campaign_id)
    return _render_page(token, is_resubscribed)


def _render_page(token: str, is_resubscribed: bool = False) -> Response:
    ids = campaign_tokens.parse_unsubscribe_token(token)
    if ids and ids.customer_id == PREVIEW_CUSTOMER_ID:
        return Response(render_template("campaigns/unsubscribe_preview.html"), mimetype="text/html")
    customer = customer_queries.find_customer(ids.customer_id) if ids else None
    if customer is None or customer.erased_at is not None:
        return Response(render_template("campaigns/unsubscribe_unknown.html"), 404, mimetype="text/html")
    suppression = suppression_queries.find_suppression_by_email(customer.email)
    body = render_template(
        "campaigns/unsubscribe.html",
        token=token,
        email=formatting.mask_email(customer.email_as_given),
        # A customer whose address bounced can still unsubscribe: the address may work again.
        reason=suppression.reason if suppression is not None and suppression.reason != "bounced" else None,
        is_resubscribed=is_resubscribed,
    )
    return Response(body, mimetype="text/html")
