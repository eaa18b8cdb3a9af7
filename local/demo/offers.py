"""Offers of the demo with their codes, drafts and audit entries."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

from sqlalchemy import insert, select

from local.demo import customers, scenario
from local.demo.records import audit_entry
from local.demo.redemptions import RedemptionSimulation
from local.demo.scenario import MANAGER, CampaignPlan, OfferPlan
from webapp.campaigns.content.placeholders import DEFAULT_SUBJECT
from webapp.campaigns.models import Campaign
from webapp.core.extensions import db
from webapp.customers.models import Audience
from webapp.offers.models import OFFER_IDS, Offer, OfferCode, OfferCounter, normalise_code


@dataclass
class OfferHistory:
    """An offer with its campaigns (id and plan) and redemptions so far."""

    plan: OfferPlan
    offer_id: int
    simulation: RedemptionSimulation
    campaigns: list[tuple[int, CampaignPlan]] = field(default_factory=list)
    launched_at: list[datetime] = field(default_factory=list)


def insert_planned_offer(plan: OfferPlan, today: datetime) -> OfferHistory:
    """Insert an offer with all its codes."""
    audience_id = None
    if plan.audience:
        audience_id = db.session.execute(select(Audience.id).where(Audience.name == plan.audience)).scalar_one()
    offer_id = db.session.execute(select(OFFER_IDS.next_value())).scalar_one()
    values = {
        "id": offer_id,
        "code": normalise_code(plan.code),
        "code_as_written": plan.code,
        "name": plan.name,
        "discount_type": plan.discount.type,
        "percent": plan.discount.percent,
        "amount": plan.discount.amount,
        "currency": plan.discount.currency,
        "starts_at": plan.starts_at,
        "ends_at": plan.ends_at,
        "time_zone": scenario.TIME_ZONE,
        "paused_at": plan.paused_at,
        "audience_id": audience_id,
        "personal_code_required": plan.personal_code_required,
        "max_redemptions": plan.max_redemptions,
        "created_at": plan.created_at,
        "version": 1 + bool(plan.paused_at) + 2 * len(plan.former_codes),
    }
    db.session.execute(
        insert(OfferCode),
        [
            {
                "code": normalise_code(code),
                "code_as_written": code,
                "offer_id": offer_id,
                "created_at": created_at,
                "closed_at": closed_at,
            }
            for code, created_at, closed_at in plan.all_codes()
        ],
    )
    db.session.execute(insert(Offer).values(values))
    db.session.execute(insert(OfferCounter).values(offer_id=offer_id, max_redemptions=plan.max_redemptions))
    return OfferHistory(plan, offer_id, RedemptionSimulation(plan, today, f"{customers.SEED}: {plan.code}"))


def insert_drafts(histories: list[OfferHistory], now: datetime) -> None:
    """Insert all campaigns as drafts in the order of their creation.

    The one that is launched live is the last.
    """
    drafts = [
        (_created_at(campaign, history.plan, now), history, campaign)
        for history in histories
        for campaign in history.plan.campaigns
    ]
    for created_at, history, campaign in sorted(drafts, key=lambda draft: (draft[2].outcome == "live", draft[0])):
        is_scheduled = campaign.outcome == "scheduled"
        campaign_id = db.session.execute(
            insert(Campaign)
            .values(
                offer_id=history.offer_id,
                kind=campaign.kind,
                subject=campaign.subject or str(DEFAULT_SUBJECT),
                text=campaign.text,
                uncertain_policy=campaign.uncertain_policy,
                created_at=created_at,
                status="scheduled" if is_scheduled else "draft",
                scheduled_at=campaign.launch_at if is_scheduled else None,
                launched_by=MANAGER.email if is_scheduled else None,
            )
            .returning(Campaign.id)
        ).scalar_one()
        history.campaigns.append((campaign_id, campaign))


def _created_at(campaign: CampaignPlan, plan: OfferPlan, now: datetime) -> datetime:
    if campaign.launch_at is not None and campaign.launch_at < now:
        return max(plan.created_at + timedelta(minutes=12), campaign.launch_at - timedelta(hours=4))
    announced_at = plan.campaigns[0].launch_at
    if campaign.kind == "reminder" and announced_at is not None:
        return announced_at + timedelta(days=2)
    return plan.created_at + timedelta(minutes=25)


def log_offer(plan: OfferPlan, audit_log: list[dict[str, Any]]) -> None:
    """Add the audit entries of an offer."""
    codes = plan.all_codes()
    audit_log.append(audit_entry(plan.created_at, "offer.created", codes[0][0], name=plan.name))
    for (before, _, _), (code, at, _) in pairwise(codes):
        audit_log.append(audit_entry(at, "offer.code_renewed", code, before=before))
    for code, _, closed_at in plan.former_codes:
        if closed_at is not None:
            audit_log.append(audit_entry(closed_at, "offer.code_closed", code, offer=plan.code))
    if plan.paused_at is not None:
        audit_log.append(audit_entry(plan.paused_at, "offer.paused", plan.code))
