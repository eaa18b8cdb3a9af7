"""JSON calls of campaigns."""

from __future__ import annotations

from flask import Response, g, jsonify, url_for
from flask_openapi import APIBlueprint

from webapp.blueprints.api import needs_scope
from webapp.campaigns import actions, queries, tasks
from webapp.campaigns.models import Campaign
from webapp.campaigns.schemas import CampaignOut, CampaignPath, OfferPath, campaign_json
from webapp.errors import Invalid, NotFound
from webapp.offers import queries as offers
from webapp.offers.models import normalise_code

room = APIBlueprint("campaigns", __name__)


@room.post("/offers/<code>/launch", responses={202: CampaignOut})
@needs_scope("manage")
def launch(path: OfferPath) -> Response:
    """Mail the code to the offer's audience. Answers at once, for an audience of any size; again changes nothing."""
    try:
        offer = offers.by_code(normalise_code(path.code))
    except Invalid:
        offer = None
    if offer is None:
        raise NotFound("There is no offer with this code.")
    return _answer(tasks.launch_offer(offer.id, by=_who()).campaign, 202)


@room.get("/campaigns/<int:id>", responses={200: CampaignOut})
@needs_scope("read")
def read(path: CampaignPath) -> Response:
    """How far a campaign is."""
    campaign = queries.by_id(path.id)
    if campaign is None:
        raise NotFound("There is no such campaign.")
    return _answer(campaign)


@room.post("/campaigns/<int:id>/pause", responses={200: CampaignOut})
@needs_scope("manage")
def pause(path: CampaignPath) -> Response:
    """Stop before the next fifty mails."""
    return _answer(actions.pause(path.id, by=_who()))


@room.post("/campaigns/<int:id>/resume", responses={200: CampaignOut})
@needs_scope("manage")
def resume(path: CampaignPath) -> Response:
    """Go on where it stands."""
    return _answer(tasks.resume(path.id, by=_who()))


@room.post("/campaigns/<int:id>/cancel", responses={200: CampaignOut})
@needs_scope("manage")
def cancel(path: CampaignPath) -> Response:
    """End it for good; who has not been mailed will not be."""
    return _answer(actions.cancel(path.id, by=_who()))


def _answer(campaign: Campaign, status: int = 200) -> Response:
    offer = offers.by_id(campaign.offer_id)
    answer = jsonify(campaign_json(campaign, queries.counts(campaign.id), offer.code_as_written if offer else ""))
    answer.status_code = status
    if status == 202:
        answer.headers["Location"] = url_for("api.campaigns.read", id=campaign.id)
    return answer


def _who() -> str:
    return f"key {g.api_key.name}"
