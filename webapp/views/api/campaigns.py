"""JSON calls of campaigns."""

from __future__ import annotations

from collections.abc import Sequence

from flask import Response, g, jsonify, url_for
from flask_openapi import APIBlueprint

from webapp.campaigns import actions as campaign_actions
from webapp.campaigns import queries as campaign_queries
from webapp.campaigns import tasks as campaign_tasks
from webapp.campaigns.content.placeholders import MailText
from webapp.campaigns.deliveries import actions as delivery_actions
from webapp.campaigns.deliveries import queries as delivery_queries
from webapp.campaigns.deliveries.actions import Which
from webapp.campaigns.models import Campaign
from webapp.core import pagination
from webapp.core.email_addresses import normalise_email
from webapp.core.errors import Invalid, NotFound
from webapp.customers import queries as customer_queries
from webapp.customers.models import Customer
from webapp.offers import queries as offer_queries
from webapp.offers.models import Offer, normalise_code
from webapp.views.api.blueprint import needs_scope
from webapp.views.api.schemas.campaigns import (
    CampaignList,
    CampaignOut,
    CampaignPage,
    CampaignPath,
    DecisionIn,
    DecisionOut,
    Launch,
    NewReminder,
    OfferPath,
    RecipientOut,
    RecipientPath,
    campaign_json,
    recipient_json,
)

room = APIBlueprint("campaigns", __name__)


@room.post(
    "/offers/<code>/launch",
    responses={202: CampaignOut, 409: None},
    request_body={
        "required": False,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Launch"}}},
    },
)
@needs_scope("manage")
def launch(path: OfferPath, body: Launch) -> Response:
    """Mail the code to the offer's audience, now or at a time. Answers at once, for an audience of any size.

    Again changes nothing; but while it waits for its time, another `at` changes the time, and none starts it now.
    """
    return _answer(campaign_tasks.launch_offer(_offer(path.code).id, by=_who(), at=body.at).campaign, 202)


@room.post("/offers/<code>/reminders", responses={202: CampaignOut, 409: None})
@needs_scope("manage")
def remind(path: OfferPath, body: NewReminder) -> Response:
    """Mail those of the offer's audience again who have not redeemed, now or at a time.

    Once the offer's mail has gone out, and one reminder at a time: 409 while either is on its way, and says which.
    Who has redeemed is looked up at the start and again before each fifty mails.
    """
    mail = MailText() if body.mail is None else MailText(**body.mail.model_dump(exclude_none=True))
    return _answer(campaign_tasks.remind(_offer(path.code).id, mail, by=_who(), at=body.at).campaign, 202)


@room.get("/campaigns", responses={200: CampaignPage, 404: None})
@needs_scope("read")
def page(query: CampaignList) -> Response:
    """List campaigns, newest first."""
    place = pagination.read(query.cursor, 1)
    offer_id = _offer(query.offer).id if query.offer is not None else None
    found = campaign_queries.page(place[0] if place else None, query.limit, query.status, offer_id)
    shown = found[: query.limit]
    following = pagination.write(shown[-1].id) if len(found) > query.limit else None
    return pagination.answer("campaigns", _json(shown), following)


@room.get("/campaigns/<int:id>", responses={200: CampaignOut})
@needs_scope("read")
def read(path: CampaignPath) -> Response:
    """How far a campaign is."""
    return _answer(_campaign(path.id))


@room.post("/campaigns/<int:id>/pause", responses={200: CampaignOut})
@needs_scope("manage")
def pause(path: CampaignPath) -> Response:
    """Stop before the next fifty mails."""
    return _answer(campaign_actions.pause(path.id, by=_who()))


@room.post("/campaigns/<int:id>/resume", responses={200: CampaignOut})
@needs_scope("manage")
def resume(path: CampaignPath) -> Response:
    """Go on where it stands."""
    return _answer(campaign_tasks.resume(path.id, by=_who()))


@room.post("/campaigns/<int:id>/cancel", responses={200: CampaignOut})
@needs_scope("manage")
def cancel(path: CampaignPath) -> Response:
    """End it for good, also before its time; who has not been mailed will not be."""
    return _answer(campaign_tasks.cancel(path.id, by=_who()))


def _offer(code: str) -> Offer:
    try:
        offer = offer_queries.by_code(normalise_code(code))
    except Invalid:
        offer = None
    if offer is None:
        raise NotFound("There is no offer with this code.")
    return offer


def _json(campaigns: Sequence[Campaign]) -> list[dict[str, object]]:
    counts = campaign_queries.counts_of([campaign.id for campaign in campaigns])
    found = offer_queries.by_ids([campaign.offer_id for campaign in campaigns])
    return [campaign_json(c, counts[c.id], found[c.offer_id].code_as_written) for c in campaigns]


@room.get("/campaigns/<int:id>/recipients/<email:email>", responses={200: RecipientOut})
@needs_scope("read")
def recipient(path: RecipientPath) -> Response:
    """Who got it? What became of one customer's mail; also of a customer who is not among the recipients."""
    return jsonify(recipient_json(delivery_queries.of_one(_campaign(path.id), _customer(path.email))))


@room.post("/campaigns/<int:id>/decisions", responses={200: DecisionOut})
@needs_scope("manage")
def decide(path: CampaignPath, body: DecisionIn) -> Response:
    """Send mails again that failed or are uncertain, or leave uncertain ones as they are. Repeats change nothing."""
    which = Which(body.state, customer_id=_customer(body.email).id if body.email is not None else None)
    if body.decision == "leave":
        return jsonify({"mails": delivery_actions.leave(path.id, which, by=_who()), "left_out": 0})
    again = campaign_tasks.send_again(path.id, which, by=_who())
    return jsonify({"mails": again.mails, "left_out": again.left_out})


def _campaign(campaign_id: int) -> Campaign:
    campaign = campaign_queries.by_id(campaign_id)
    if campaign is None:
        raise NotFound("There is no such campaign.")
    return campaign


def _customer(email: str) -> Customer:
    try:
        customer = customer_queries.by_email(normalise_email(email))
    except Invalid:
        customer = None
    if customer is None:
        raise NotFound("There is no customer with this e-mail.")
    return customer


def _answer(campaign: Campaign, status: int = 200) -> Response:
    answer = jsonify(_json([campaign])[0])
    answer.status_code = status
    if status == 202:
        answer.headers["Location"] = url_for("api.campaigns.read", id=campaign.id)
    return answer


def _who() -> str:
    return f"key {g.api_key.name}"
