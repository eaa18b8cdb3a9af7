"""Customer pages of campaigns: the way out of the mails."""

from __future__ import annotations

from flask import Blueprint, Response, render_template

from webapp import web
from webapp.blueprints.public import from_anywhere
from webapp.campaigns import actions, links
from webapp.customers import queries as customers

room = Blueprint("campaigns", __name__)


@room.get("/u/<token>")
def unsubscribing(token: str) -> Response:
    """The button that ends the mails. Looking changes nothing: mail scanners open links."""
    return _page(token, done=False)


@room.post("/u/<token>")
@from_anywhere
def unsubscribe(token: str) -> Response:
    """End the mails: by the button, or by a mail provider for its user (RFC 8058), without login or redirect."""
    pair = links.read(token)
    if pair is not None:
        actions.unsubscribe(pair[0])
    return _page(token, done=True)


def _page(token: str, done: bool) -> Response:
    pair = links.read(token)
    customer = customers.by_id(pair[0]) if pair else None
    if customer is None or customer.erased_at is not None:
        return Response(render_template("campaigns/unsubscribe_unknown.html"), 404, mimetype="text/html")
    body = render_template(
        "campaigns/unsubscribe.html",
        token=token,
        email=web.masked(customer.email_as_given),
        is_done=done or customer.unsubscribed_at is not None,
    )
    return Response(body, mimetype="text/html")
