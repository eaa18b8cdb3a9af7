"""API views for campaigns."""

from __future__ import annotations

from collections.abc import Sequence

from flask import Response, jsonify, url_for
from flask_babel import gettext as _
from flask_openapi import APIBlueprint

from webapp.campaigns import queries as campaign_queries
from webapp.campaigns import stats_queries
from webapp.campaigns.content.placeholders import EmailContent
from webapp.campaigns.deliveries import actions as delivery_actions
from webapp.campaigns.deliveries import queries as delivery_queries
from webapp.campaigns.deliveries.actions import DeliverySelection
from webapp.campaigns.launch import actions as launch_actions
from webapp.campaigns.launch import transitions
from webapp.campaigns.models import Campaign
from webapp.core import pagination
from webapp.core.email_addresses import normalise_email
from webapp.core.errors import InvalidInput, NotFound
from webapp.customers import queries as customer_queries
from webapp.customers.models import Customer
from webapp.offers import queries as offer_queries
from webapp.offers.models import Offer, normalise_code
from webapp.views.access_notes import note_access
from webapp.views.api.blueprint import get_actor, require_scope
from webapp.views.api.schemas.campaigns import (
    CampaignListQuery,
    CampaignOfferPath,
    CampaignOut,
    CampaignPage,
    CampaignPath,
    DecisionIn,
    DecisionOut,
    Launch,
    NewReminder,
    RecipientOut,
    RecipientPath,
    campaign_json,
    recipient_json,
)

blueprint = APIBlueprint("campaigns", __name__)


@blueprint.post(
    "/offers/<code>/launch",
    responses={202: CampaignOut, 409: None},
    request_body={
        "required": False,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Launch"}}},
    },
)
@require_scope("manage")
def launch(path: CampaignOfferPath, body: Launch) -> Response:
    """Launch the offer's announcement, now or at a scheduled time.

    The response does not wait until the emails are sent.

    A repeated call changes nothing; but while the campaign is scheduled, a different `at` reschedules it, and a call
    without `at` launches it now.
    """
    return _campaign_response(
        launch_actions.launch_announcement(_get_offer_or_404(path.code).id, by=get_actor(), at=body.at).campaign, 202
    )


@blueprint.post("/offers/<code>/reminders", responses={202: CampaignOut, 409: None})
@require_scope("manage")
def remind(path: CampaignOfferPath, body: NewReminder) -> Response:
    """Launch a reminder, now or at a scheduled time.

    It goes to the customers in the offer's audience who have not redeemed.

    The announcement must be done, and an offer can have only one unfinished reminder: otherwise the response is 409
    and identifies the unfinished campaign. Redemptions are checked at the launch and again shortly before each email.
    """
    content = EmailContent() if body.mail is None else EmailContent(**body.mail.model_dump(exclude_none=True))
    return _campaign_response(
        launch_actions.launch_reminder(_get_offer_or_404(path.code).id, content, by=get_actor(), at=body.at).campaign,
        202,
    )


@blueprint.get("/campaigns", responses={200: CampaignPage, 404: None})
@require_scope("read")
def page(query: CampaignListQuery) -> Response:
    """List campaigns, newest first."""
    position = pagination.decode_cursor(query.cursor, 1)
    offer_id = _get_offer_or_404(query.offer).id if query.offer is not None else None
    rows = campaign_queries.list_campaigns(position[0] if position else None, query.limit, query.status, offer_id)
    campaigns = rows[: query.limit]
    next_cursor = pagination.encode_cursor(campaigns[-1].id) if len(rows) > query.limit else None
    return pagination.build_page_response("campaigns", _campaigns_json(campaigns), next_cursor)


@blueprint.get("/campaigns/<int:id>", responses={200: CampaignOut})
@require_scope("read")
def read(path: CampaignPath) -> Response:
    """Get the status and progress of a campaign."""
    return _campaign_response(_get_campaign_or_404(path.id))


@blueprint.post("/campaigns/<int:id>/pause", responses={200: CampaignOut})
@require_scope("manage")
def pause(path: CampaignPath) -> Response:
    """Pause a campaign.

    Emails of the current send window are still sent.
    """
    return _campaign_response(transitions.pause_campaign(path.id, by=get_actor()))


@blueprint.post("/campaigns/<int:id>/resume", responses={200: CampaignOut})
@require_scope("manage")
def resume(path: CampaignPath) -> Response:
    """Resume a paused campaign."""
    return _campaign_response(transitions.resume_campaign(path.id, by=get_actor()))


@blueprint.post("/campaigns/<int:id>/cancel", responses={200: CampaignOut})
@require_scope("manage")
def cancel(path: CampaignPath) -> Response:
    """Cancel a campaign, even a scheduled one.

    Its remaining emails are not sent.
    """
    return _campaign_response(transitions.cancel_campaign(path.id, by=get_actor()))


def _get_offer_or_404(code: str) -> Offer:
    try:
        offer = offer_queries.find_offer_by_code(normalise_code(code))
    except InvalidInput:
        offer = None
    if offer is None:
        raise NotFound(_("No offer has this code."))
    return offer


def _campaigns_json(campaigns: Sequence[Campaign]) -> list[dict[str, object]]:
    stats = stats_queries.get_stats_by_campaign([campaign.id for campaign in campaigns])
    offers = offer_queries.find_offers([campaign.offer_id for campaign in campaigns])
    return [
        campaign_json(campaign, stats[campaign.id], offers[campaign.offer_id].code_as_written) for campaign in campaigns
    ]


@blueprint.get("/campaigns/<int:id>/recipients/<email:email>", responses={200: RecipientOut})
@require_scope("read")
def recipient(path: RecipientPath) -> Response:
    """Get the delivery state of one customer's email.

    This also works for a customer who is not a recipient.
    """
    campaign, customer = _get_campaign_or_404(path.id), _get_customer_or_404(path.email)
    note_access("customer.viewed")
    return jsonify(recipient_json(delivery_queries.find_delivery(campaign, customer)))


@blueprint.post("/campaigns/<int:id>/decisions", responses={200: DecisionOut})
@require_scope("manage")
def decide(path: CampaignPath, body: DecisionIn) -> Response:
    """Resend failed or uncertain emails, or dismiss uncertain ones.

    A repeated call changes nothing.
    """
    selection = DeliverySelection(
        body.state, customer_id=_get_customer_or_404(body.email).id if body.email is not None else None
    )
    if body.decision == "leave":
        return jsonify(
            {"mails": delivery_actions.dismiss_uncertain_deliveries(path.id, selection, by=get_actor()), "left_out": 0}
        )
    result = delivery_actions.resend_deliveries(path.id, selection, by=get_actor())
    return jsonify({"mails": result.resent, "left_out": result.suppressed})


def _get_campaign_or_404(campaign_id: int) -> Campaign:
    campaign = campaign_queries.find_campaign(campaign_id)
    if campaign is None:
        raise NotFound(_("This campaign does not exist."))
    return campaign


def _get_customer_or_404(email: str) -> Customer:
    try:
        customer = customer_queries.find_customer_by_email(normalise_email(email))
    except InvalidInput:
        customer = None
    if customer is None:
        raise NotFound(_("No customer has this email address."))
    return customer


def _campaign_response(campaign: Campaign, status: int = 200) -> Response:
    response = jsonify(_campaigns_json([campaign])[0])
    response.status_code = status
    if status == 202:
        response.headers["Location"] = url_for("api.campaigns.read", id=campaign.id)
    return response
