"""Generate eight weeks of offers, campaigns and redemptions from the scenario.

The result is the same for the same day: every simulation has a seed of its own, and of today only what is before `now`
is written.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from zlib import crc32

from sqlalchemy import insert, select, update

from local.demo import campaigns, customers, records, scenario
from local.demo.campaigns import Recipients, SentCampaign
from local.demo.offers import OfferHistory, insert_drafts, insert_planned_offer, log_offer
from local.demo.records import audit_entry
from local.demo.redemptions import Candidate
from local.demo.scenario import MANAGER, CampaignPlan, DayConverter, OfferPlan
from webapp.campaigns.models import Batch, Campaign, MailIssue
from webapp.core.extensions import db
from webapp.customers.models import Audience, AudienceMember, Customer, Suppression
from webapp.offers.models import Offer

# Shares of those who received an email: who unsubscribes, who complains, whose email bounces later.
UNSUBSCRIBE_SHARE, COMPLAINT_SHARE, LATE_BOUNCE_SHARE = 0.004, 0.0006, 0.0012
LATE_BOUNCE_TEXT = "5.2.1 Delivery has failed: the mailbox is not active any more"
# Shares of mailboxes that do not exist: of all customers, of lapsed ones, of newsletter sign-ups.
MISSING_SHARE, MISSING_SHARE_LAPSED, MISSING_SHARE_SIGN_UPS = 0.005, 0.022, 0.16
# Campaigns with these outcomes have not been launched when the history ends.
NOT_LAUNCHED = ("draft", "scheduled", "live")


@dataclass
class _CustomerBase:
    """The customers, by ascending id as campaigns process them.

    `suppressions` are by email address; those that are not written yet have a source and a text.
    """

    emails: dict[int, str]
    audiences: dict[str, list[int]]
    missing_mailboxes: set[int]
    sign_ups: set[int]
    suppressions: dict[str, dict[str, Any]]

    def members(self, audience: str) -> list[int]:
        """Return the ids of an audience; of all customers for an empty name."""
        return self.audiences[audience] if audience else list(self.emails)


def write_dataset(now: datetime) -> None:
    """Write everything that happened after the imports and before `now`.

    Commits once.

    :param now: with a time zone; nothing later is written.
    """
    day = scenario.create_day_converter(now)
    records.backdate_imports(day)
    base = _load_customer_base(day)
    api_key_ids = records.insert_api_keys(day)
    plans = sorted(scenario.plan_offers(now), key=lambda plan: plan.created_at)
    histories = [insert_planned_offer(plan, day(0)) for plan in plans]
    insert_drafts(histories, now)
    for history in histories:
        _simulate_walk_ins(history, base)
    audit_log: list[dict[str, Any]] = []
    _simulate_campaigns(histories, base, now, audit_log)
    for history in histories:
        log_offer(history.plan, audit_log)
        redemptions = history.simulation.finish(api_key_ids)
        records.insert_redemptions(history.plan, history.offer_id, redemptions, history.launched_at, now, audit_log)
    records.insert_suppressions(base.suppressions, now)
    records.insert_failed_attempts(history.offer_id for history in histories if history.plan.under_attack)
    records.insert_shop(day, audit_log)
    records.insert_audit_log(audit_log, now)
    db.session.commit()


def _load_customer_base(day: DayConverter) -> _CustomerBase:
    rows = db.session.execute(select(Customer.id, Customer.email, Customer.created_at).order_by(Customer.id)).all()
    members = db.session.execute(
        select(Audience.name, AudienceMember.customer_id)
        .join(Audience, Audience.id == AudienceMember.audience_id)
        .order_by(AudienceMember.customer_id)
    )
    audiences: dict[str, list[int]] = {name: [] for name in customers.AUDIENCES}
    for name, customer_id in members:
        audiences[name].append(customer_id)
    lapsed = set(audiences["Lapsed"])
    sign_ups = {row.id for row in rows if row.created_at >= day(scenario.SIGN_UP_DAY)}
    missing = set()
    for row in rows:
        share = (
            MISSING_SHARE_SIGN_UPS if row.id in sign_ups
            else MISSING_SHARE_LAPSED if row.id in lapsed
            else MISSING_SHARE
        )  # fmt: skip
        if _draw(row.email, "gone") < share:
            missing.add(row.id)
    suppressed = db.session.execute(select(Suppression.email, Suppression.reason, Suppression.at)).all()
    return _CustomerBase(
        emails={row.id: row.email for row in rows},
        audiences=audiences,
        missing_mailboxes=missing,
        sign_ups=sign_ups,
        suppressions={row.email: {"reason": row.reason, "at": row.at} for row in suppressed},
    )


# --- campaigns and their effects -----------------------------------------------------------------


def _simulate_walk_ins(history: OfferHistory, base: _CustomerBase) -> None:
    """Let customers redeem who received no email."""
    plan = history.plan
    if plan.starts_at >= history.simulation.until:
        return
    since = max(plan.starts_at, plan.created_at)
    candidates = [
        Candidate(customer_id, since, False)
        for customer_id in base.members(plan.audience)
        if customer_id not in base.sign_ups
    ]
    history.simulation.redeem(candidates, round((plan.redemptions + plan.rollbacks) * plan.walk_in_share))


def _simulate_campaigns(
    histories: list[OfferHistory], base: _CustomerBase, now: datetime, audit_log: list[dict[str, Any]]
) -> None:
    """Send all past campaigns in the order of their launch."""
    launched = [
        (history, campaign_id, campaign)
        for history in histories
        for campaign_id, campaign in history.campaigns
        if campaign.outcome not in NOT_LAUNCHED
    ]
    for history, campaign_id, campaign in sorted(launched, key=lambda each: each[2].launch_at or now):
        _simulate_campaign(history, campaign_id, campaign, base, now, audit_log)


def _simulate_campaign(
    history: OfferHistory,
    campaign_id: int,
    campaign: CampaignPlan,
    base: _CustomerBase,
    now: datetime,
    audit_log: list[dict[str, Any]],
) -> None:
    """Simulate one past campaign and the redemptions and suppressions that follow."""
    assert campaign.launch_at is not None  # noqa: S101
    launched_at, rows = campaign.launch_at, history.simulation.rows
    includes_sign_ups = launched_at >= scenario.create_day_converter(now)(scenario.SIGN_UP_DAY + 1)
    ids = [
        customer_id
        for customer_id in base.members(history.plan.audience)
        if includes_sign_ups or customer_id not in base.sign_ups
    ]
    if campaign.kind == "reminder":
        ids = [
            customer_id
            for customer_id in ids
            if customer_id not in rows or rows[customer_id]["redeemed_at"] >= launched_at
        ]

    def skip_reason(customer_id: int, at: datetime) -> str | None:
        suppression = base.suppressions.get(base.emails[customer_id])
        if suppression is not None and suppression["at"] < at:
            return str(suppression["reason"])
        redemption = rows.get(customer_id)
        return "has already redeemed" if redemption is not None and redemption["redeemed_at"] < at else None

    seed = f"{customers.SEED}: {history.plan.code} {campaign.kind}"
    recipients = Recipients(ids, base.missing_mailboxes, skip_reason)
    sent = campaigns.simulate_sending(campaign, recipients, MANAGER.email, seed)
    _redeem_after_email(history, campaign, sent)
    _suppress_recipients(campaign_id, history, sent, base, now, audit_log)
    history.launched_at.append(launched_at)
    _resolve_uncertain(campaign, sent)
    _write_campaign(campaign_id, sent)
    _log_campaign(history.plan, campaign_id, campaign, sent, audit_log)


def _redeem_after_email(history: OfferHistory, campaign: CampaignPlan, sent: SentCampaign) -> None:
    plan = history.plan
    total = round((plan.redemptions + plan.rollbacks) * (1 - plan.walk_in_share))
    has_reminder = sum(each.outcome not in NOT_LAUNCHED for each in plan.campaigns) > 1
    share = 1.0 if not has_reminder else 0.7 if campaign.kind == "announcement" else 0.3
    candidates = [Candidate(customer_id, at, True) for customer_id, at in sorted(sent.delivered_at.items())]
    history.simulation.redeem(candidates, round(total * share))


def _suppress_recipients(
    campaign_id: int,
    history: OfferHistory,
    sent: SentCampaign,
    base: _CustomerBase,
    now: datetime,
    audit_log: list[dict[str, Any]],
) -> None:
    """Suppress recipients who unsubscribe, complain or whose email bounces."""
    source = f"campaign {campaign_id}"
    for customer_id, delivery in sent.deliveries.items():
        if delivery["state"] == "failed" and delivery["text"].startswith("5.1."):
            reply = f"{delivery['smtp_code']} {delivery['text']}"
            _suppress(base, customer_id, "bounced", delivery["at"], source, reply)
    complaint_limit = UNSUBSCRIBE_SHARE + COMPLAINT_SHARE
    for customer_id, delivered_at in sorted(sent.delivered_at.items()):
        email = base.emails[customer_id]
        draw = _draw(email, history.plan.code)
        at = delivered_at + timedelta(hours=0.2 + 30 * _draw(email, "later") ** 3)
        if draw < UNSUBSCRIBE_SHARE and _suppress(base, customer_id, "unsubscribed", at, source):
            audit_log.append(
                audit_entry(
                    at,
                    "customer.unsubscribed",
                    f"customer {customer_id}",
                    actor="the customer",
                    campaign=campaign_id,
                )
            )
        elif UNSUBSCRIBE_SHARE <= draw < complaint_limit:
            _suppress(base, customer_id, "complained", at, source, "feedback loop: abuse")
        elif complaint_limit <= draw < complaint_limit + LATE_BOUNCE_SHARE:
            mailbox_exists = customer_id in history.simulation.rows or at >= now
            if not mailbox_exists and _suppress(base, customer_id, "bounced", at, source, LATE_BOUNCE_TEXT):
                campaigns.record_bounce(sent, customer_id, at, LATE_BOUNCE_TEXT)


def _suppress(base: _CustomerBase, customer_id: int, reason: str, at: datetime, source: str, text: str = "") -> bool:
    """Suppress a customer's address; return False if it is suppressed already."""
    email = base.emails[customer_id]
    if email in base.suppressions:
        return False
    base.suppressions[email] = {"reason": reason, "at": at, "source": source, "words": text}
    return True


def _resolve_uncertain(campaign: CampaignPlan, sent: SentCampaign) -> None:
    """Dismiss the uncertain deliveries of a reminder, as staff would do."""
    for delivery in sent.deliveries.values():
        if delivery["state"] == "uncertain" and campaign.kind == "reminder":
            text = f"{delivery['text']}; dismissed by {MANAGER.email}"
            delivery |= {"state": "left", "text": text, "at": delivery["at"] + timedelta(hours=2)}


def _write_campaign(campaign_id: int, sent: SentCampaign) -> None:
    db.session.execute(insert(Batch), [{"campaign_id": campaign_id, **batch} for batch in sent.batches])
    if sent.deliveries:
        db.session.execute(insert(MailIssue), [{"campaign_id": campaign_id, **row} for row in sent.deliveries.values()])
    # A launch copies the audience, so that later changes of the offer do not matter.
    audience_id = select(Offer.audience_id).where(Offer.id == Campaign.offer_id).scalar_subquery()
    values = {**sent.campaign, "audience_id": audience_id}
    statement = update(Campaign).where(Campaign.id == campaign_id).values(values)
    db.session.execute(statement.execution_options(synchronize_session=False))


# --- audit log -----------------------------------------------------------------------------------


def _log_campaign(
    plan: OfferPlan, campaign_id: int, campaign: CampaignPlan, sent: SentCampaign, audit_log: list[dict[str, Any]]
) -> None:
    launched_at = sent.campaign["launched_at"]
    audit_log.append(audit_entry(launched_at - timedelta(minutes=9), "mail.saved", str(campaign_id)))
    audit_log.append(audit_entry(launched_at, "campaign.launched", plan.code, campaign=campaign_id))
    if campaign.outcome == "cancelled":
        audit_log.append(audit_entry(sent.campaign["cancelled_at"], "campaign.cancelled", str(campaign_id)))
    if campaign.outcome == "paused":
        seconds = max(batch["windows"][-1] for batch in sent.batches if batch["windows"])
        paused_at = launched_at + timedelta(seconds=seconds)
        audit_log.append(audit_entry(paused_at, "campaign.paused", str(campaign_id)))
    resolved_at = [delivery["at"] for delivery in sent.deliveries.values() if delivery["state"] == "left"]
    if resolved_at:
        audit_log.append(
            audit_entry(max(resolved_at), "campaign.left_uncertain", str(campaign_id), mails=1, state="uncertain")
        )


def _draw(*keys: str) -> float:
    """Return a random number in [0, 1) that depends on the keys alone."""
    return crc32(" ".join(keys).encode()) / 2**32
