"""Customer pages of redemptions: the form, the personal link, the receipt."""

from __future__ import annotations

import segno
from flask import Blueprint, Response, g, render_template, request
from markupsafe import Markup

from webapp.core.email_addresses import normalise_email
from webapp.core.errors import Invalid
from webapp.core.rate_limit import TooMany, address, each, limiter, typed
from webapp.customers import queries as customer_queries
from webapp.mail import locales
from webapp.redemptions import facts as redemption_facts
from webapp.redemptions import group_commit, guessing, personal_links, refusals
from webapp.redemptions import queries as redemption_queries
from webapp.redemptions import tasks as redemption_tasks
from webapp.redemptions.errors import Refused
from webapp.redemptions.queries import Redeemed
from webapp.redemptions.rules import Ask, verdict
from webapp.shop import queries as shop_queries
from webapp.views import rendering
from webapp.views.public.forms import RedeemForm

room = Blueprint("redemptions", __name__)


_email = typed("email", normalise_email)


def _was_a_miss(response: Response) -> bool:
    """Whether somebody seems to be guessing who is a customer; a used-up offer that is in demand is no guess."""
    return bool(g.get("miss", False))


def _link() -> str:
    """Whose link is pressed. What is no link of ours is counted by who sends it."""
    pair = personal_links.read((request.view_args or {})["token"])
    return f"link:{pair[0]}:{pair[1]}" if pair else f"link:{address()}"


@room.get("/redeem")
def form() -> Response:
    """Code and e-mail. Looking redeems nothing."""
    return _page("redemptions/redeem.html", form=RedeemForm(code=request.args.get("code", "")[:200]))


@room.post("/redeem")
@limiter.limit("60 per minute", key_func=address)
@limiter.limit("20 per 5 minutes", key_func=each(_email, address))
@limiter.limit("100 per 10 minutes", key_func=_email, deduct_when=_was_a_miss)
def redeem() -> Response:
    """Redeem what was typed: the receipt, or the form as it was typed with one plain sentence above it."""
    typed_in = RedeemForm(request.form)
    try:
        ask = typed_in.ask()
        if guessing.too_many(ask.code or ""):
            raise TooMany(guessing.CLOSED_SECONDS)
        done = group_commit.redeem(ask)
    except Invalid as error:
        rendering.attach(typed_in, error)
        return _page("redemptions/redeem.html", 422, form=typed_in)
    except Refused as refused:
        reason, offer = refused.verdict.public_reason or refused.reason, refused.facts.offer
        g.miss = reason in ("not_found", "customer_not_eligible")
        if offer is not None and reason == "customer_not_eligible":
            guessing.count(offer.id)
        if offer is not None and refused.facts.customer_id is not None and reason == "already_redeemed":
            redemption_tasks.mail_receipt_again(offer.id, refused.facts.customer_id)
        sentence = refusals.public(reason, offer, _locale(None))
        return _page("redemptions/redeem.html", 404 if reason == "not_found" else 409, form=typed_in, refusal=sentence)
    return _receipt(done)


@room.errorhandler(TooMany)
def too_many(error: TooMany) -> Response:
    """Keep what was typed, and show the way that strangers can't close: the link has limits of its own."""
    if request.endpoint == "public.redemptions.redeem":
        sentence = refusals.too_many(error.wait)
        answer = _page("redemptions/redeem.html", 429, form=RedeemForm(request.form), refusal=sentence)
    else:
        answer = _page("redemptions/link_wait.html", 429, sentence=error.message)
    answer.headers["Retry-After"] = str(error.seconds)
    return answer


@room.get("/r/<token>")
def link(token: str) -> Response:
    """The form filled in for whom the link belongs to, or the receipt once it was used. Looking redeems nothing."""
    pair = personal_links.read(token)
    if pair and pair[1] == personal_links.NOBODY:
        return _page("redemptions/link_preview.html")
    facts = redemption_facts.facts([_ask(pair)])[0] if pair else None
    if facts is None or facts.offer is None or facts.customer_id is None:
        return _page("redemptions/link_unknown.html", 404)
    done = redemption_queries.of_pair(facts.offer.id, facts.customer_id) if facts.use else None
    if done is not None:
        return _receipt(done, again=True)
    reason, locale = verdict(facts).reason, _locale(facts.customer_id)
    return _page(
        "redemptions/link.html",
        200 if reason is None else 409,
        token=token,
        offer=facts.offer,
        email=facts.email,
        locale=locale,
        refusal=refusals.link(reason, facts.offer, locale) if reason else None,
    )


@room.post("/r/<token>")
@limiter.limit("60 per minute", key_func=address)
@limiter.limit("20 per 5 minutes", key_func=_link)
def redeem_link(token: str) -> Response:
    """The one button of the personal link."""
    pair = personal_links.read(token)
    if pair is None:
        return _page("redemptions/link_unknown.html", 404)
    if pair[1] == personal_links.NOBODY:
        return _page("redemptions/link_preview.html")
    try:
        return _receipt(group_commit.redeem(_ask(pair)))
    except Refused as refused:
        facts = refused.facts
        done = redemption_queries.of_pair(*pair) if refused.reason == "already_redeemed" else None
        if done is not None:
            return _receipt(done, again=True)
        if facts.offer is None or facts.customer_id is None:
            return _page("redemptions/link_unknown.html", 404)
        sentence = refusals.link(refused.reason, facts.offer, _locale(facts.customer_id))
        return _page("redemptions/link.html", 409, token=token, offer=facts.offer, email=facts.email, refusal=sentence)


def _ask(pair: tuple[int, int]) -> Ask:
    return Ask(channel="link", offer_id=pair[0], customer_id=pair[1])


def _receipt(done: Redeemed, again: bool = False) -> Response:
    # Presentation attributes only: the policy of the pages allows no style of an element's own.
    code = segno.make(done.public_id, error="m").svg_inline(scale=4, border=2, omitsize=True)
    return _page(
        "redemptions/receipt.html",
        done=done,
        again=again,
        locale=_locale(done.customer_id),
        qr=Markup(code),  # noqa: S704
    )


def _locale(customer_id: int | None) -> str:
    """In which days and money are written: the customer's, if they have one that is known, else the shop's."""
    customer = customer_queries.by_id(customer_id) if customer_id is not None else None
    return locales.known(customer.locale if customer is not None else None, shop_queries.shop().locale)


def _page(template: str, status: int = 200, **values: object) -> Response:
    return Response(render_template(template, **values), status, mimetype="text/html")
