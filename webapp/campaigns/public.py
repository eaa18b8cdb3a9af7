"""Customer pages of campaigns: the way out of the mails."""

from __future__ import annotations

from flask import Blueprint, Response, render_template

from webapp import web
from webapp.blueprints.public import from_anywhere
from webapp.campaigns import links
from webapp.customers import queries as customers
from webapp.customers import suppression_actions as suppressions
from webapp.customers import suppression_queries
from webapp.redemptions.links import NOBODY

room = Blueprint("campaigns", __name__)


@room.get("/u/<token>")
def unsubscribing(token: str) -> Response:
    """The button that ends the mails. Looking changes nothing: mail scanners open links."""
    return _page(token)


@room.post("/u/<token>")
@from_anywhere
def unsubscribe(token: str) -> Response:
    """End the mails: by the button, or by a mail provider for its user (RFC 8058), without login or redirect.

    The body is not read: whatever a provider sends, and in whatever form, the token alone says who.
    """
    pair = links.read(token)
    if pair is not None:
        suppressions.unsubscribe(*pair)
    return _page(token)


@room.post("/u/<token>/back")
def subscribe_again(token: str) -> Response:
    """The way back for whoever pressed the button by mistake. Only from our own page, never by a provider."""
    pair = links.read(token)
    back = pair is not None and suppressions.subscribe_again(*pair)
    return _page(token, back)


def _page(token: str, is_back: bool = False) -> Response:
    pair = links.read(token)
    if pair and pair[0] == NOBODY:
        return Response(render_template("campaigns/unsubscribe_preview.html"), mimetype="text/html")
    customer = customers.by_id(pair[0]) if pair else None
    if customer is None or customer.erased_at is not None:
        return Response(render_template("campaigns/unsubscribe_unknown.html"), 404, mimetype="text/html")
    listed = suppression_queries.of_email(customer.email)
    body = render_template(
        "campaigns/unsubscribe.html",
        token=token,
        email=web.masked(customer.email_as_given),
        # Whose address bounced may still ask for it: mails must not start again when the address works again.
        reason=listed.reason if listed is not None and listed.reason != "bounced" else None,
        is_back=is_back,
    )
    return Response(body, mimetype="text/html")
