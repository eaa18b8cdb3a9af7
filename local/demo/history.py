"""Eight weeks of the demonstration's shop, told from its script and its people; then written down in one transaction.

The same for the same day: every chance has a seed of its own, and of today only what is over by now is written.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any
from zlib import crc32

from sqlalchemy import insert, select, update

from local.demo import ledger, mailings, people
from local.demo import offers as demo_offers
from local.demo.ledger import entry, own
from local.demo.mailings import People, Went
from local.demo.models import DemoRow
from local.demo.offers import MANAGER, Mailing, Told
from local.demo.uses import Mailed, Till
from webapp.campaigns.content.placeholders import DEFAULT_SUBJECT
from webapp.campaigns.models import Batch, Campaign, MailIssue
from webapp.core.extensions import db
from webapp.customers.models import Audience, AudienceMember, Customer, Suppression
from webapp.offers.models import Offer, OfferCode, normalise_code

# Of those who got a mail: who ends them, who complains, whose mailbox sends it back later.
UNSUBSCRIBES, COMPLAINS, COMES_BACK = 0.004, 0.0006, 0.0012
RETURNED = "5.2.1 Delivery has failed: the mailbox is not active any more"
# The share of mailboxes that are no more: of all, of those who have not come for long, of sign-ups typed in a hurry.
GONE, GONE_OF_LAPSED, GONE_OF_SIGN_UPS = 0.005, 0.022, 0.16


@dataclass
class _Crowd:
    """The customers by id, ascending: in that order a mailing walks them."""

    emails: dict[int, str]
    audiences: dict[str, list[int]]
    gone: set[int]
    signed_up: set[int]
    # Who must not be mailed: since when, why, where that came from, in whose words.
    suppressed: dict[str, dict[str, Any]]

    def of(self, audience: str) -> list[int]:
        return self.audiences[audience] if audience else list(self.emails)


@dataclass
class _Story:
    """An offer as it comes about."""

    told: Told
    offer_id: int
    till: Till
    mailings: list[tuple[int, Mailing]] = field(default_factory=list)
    launched: list[datetime] = field(default_factory=list)


def write(now: datetime) -> None:
    """All that the shop has done and seen before now, but for what its imports brought. Commits, all or nothing.

    :param now: with a time zone; what would be later is left out.
    """
    day = demo_offers.days(now)
    ledger.imported(day)
    crowd = _crowd(day)
    keys = ledger.api_keys(day)
    stories = [_offer(told, day(0)) for told in sorted(demo_offers.offers(now), key=lambda told: told.created_at)]
    _campaigns(stories, now)
    for story in stories:
        _walk_ins(story, crowd)
    past = [(story, each) for story in stories for each in story.mailings if each[1].status not in NOT_YET]
    trail: list[dict[str, Any]] = []
    for story, (campaign_id, mailing) in sorted(past, key=lambda pair: pair[1][1].at or now):
        _mailed(story, campaign_id, mailing, crowd, now, trail)
    for story in stories:
        _deeds_of_offer(story.told, trail)
        ledger.used(story.told, story.offer_id, story.till.used(keys), story.launched, now, trail)
    ledger.suppressions(crowd.suppressed, now)
    ledger.guesses([story.offer_id for story in stories if story.told.guessed])
    ledger.shop(day, trail)
    ledger.write_trail(trail, now)
    ledger.count_anew()
    db.session.commit()


NOT_YET = ("draft", "scheduled", "live")


def _crowd(day: demo_offers.Day) -> _Crowd:
    ours = select(DemoRow.row_id).where(DemoRow.part == "customer")
    found = db.session.execute(
        select(Customer.id, Customer.email, Customer.created_at).where(Customer.id.in_(ours)).order_by(Customer.id)
    ).all()
    members = db.session.execute(
        select(Audience.name, AudienceMember.customer_id)
        .join(Audience, Audience.id == AudienceMember.audience_id)
        .where(Audience.name.in_(people.AUDIENCES), AudienceMember.customer_id.in_(ours))
        .order_by(AudienceMember.customer_id)
    )
    audiences: dict[str, list[int]] = {name: [] for name in people.AUDIENCES}
    for name, customer_id in members:
        audiences[name].append(customer_id)
    lapsed = set(audiences["Lapsed"])
    signed_up = {row.id for row in found if row.created_at >= day(demo_offers.SIGN_UPS)}
    gone = set()
    for row in found:
        share = GONE_OF_SIGN_UPS if row.id in signed_up else GONE_OF_LAPSED if row.id in lapsed else GONE
        if _luck(row.email, "gone") < share:
            gone.add(row.id)
    emails = {row.id: row.email for row in found}
    listed = db.session.execute(select(Suppression.email, Suppression.reason, Suppression.at)).all()
    return _Crowd(
        emails, audiences, gone, signed_up, {row.email: {"reason": row.reason, "at": row.at} for row in listed}
    )


# --- offers and their mailings -----------------------------------------------------------------------


def _offer(told: Told, today: datetime) -> _Story:
    audience_id = None
    if told.audience:
        audience_id = db.session.execute(select(Audience.id).where(Audience.name == told.audience)).scalar_one()
    values = {
        "code": normalise_code(told.code),
        "code_as_written": told.code,
        "name": told.name,
        "discount_type": told.discount.type,
        "percent": told.discount.percent,
        "amount": told.discount.amount,
        "currency": told.discount.currency,
        "starts_at": told.starts_at,
        "ends_at": told.ends_at,
        "time_zone": demo_offers.ZONE,
        "paused_at": told.paused_at,
        "audience_id": audience_id,
        "personal_code_required": told.personal,
        "max_redemptions": told.cap,
        "created_at": told.created_at,
        "version": 1 + bool(told.paused_at) + 2 * len(told.former),
    }
    offer_id = db.session.execute(insert(Offer).values(values).returning(Offer.id)).scalar_one()
    codes = [*told.former, (told.code, told.renewed_at or told.created_at, None)]
    db.session.execute(
        insert(OfferCode),
        [
            {
                "code": normalise_code(code),
                "code_as_written": code,
                "offer_id": offer_id,
                "created_at": given_out,
                "closed_at": closed,
            }
            for code, given_out, closed in codes
        ],
    )
    own("offer", [offer_id])
    return _Story(told, offer_id, Till(told, today, f"{people.SEED}: {told.code}"))


def _campaigns(stories: list[_Story], now: datetime) -> None:
    """A draft of each mailing, in the order in which they were written; the one to be launched now is the last."""
    every = [
        (_written_at(mailing, story.told, now), story, mailing) for story in stories for mailing in story.told.mailings
    ]
    for at, story, mailing in sorted(every, key=lambda each: (each[2].status == "live", each[0])):
        waits = mailing.status == "scheduled"
        campaign_id = db.session.execute(
            insert(Campaign)
            .values(
                offer_id=story.offer_id,
                kind=mailing.kind,
                subject=mailing.subject or str(DEFAULT_SUBJECT),
                text=mailing.text,
                uncertain_policy=mailing.policy,
                created_at=at,
                status="scheduled" if waits else "draft",
                scheduled_at=mailing.at if waits else None,
                launched_by=MANAGER[0] if waits else None,
            )
            .returning(Campaign.id)
        ).scalar_one()
        own("campaign", [campaign_id])
        story.mailings.append((campaign_id, mailing))


def _written_at(mailing: Mailing, told: Told, now: datetime) -> datetime:
    if mailing.at is not None and mailing.at < now:
        return max(told.created_at + timedelta(minutes=12), mailing.at - timedelta(hours=4))
    first = told.mailings[0].at
    if mailing.kind == "reminder" and first is not None:
        return first + timedelta(days=2)
    return told.created_at + timedelta(minutes=25)


def _walk_ins(story: _Story, crowd: _Crowd) -> None:
    """Those who heard of it at the till, from friends or on a poster."""
    told = story.told
    if told.starts_at >= story.till.until:
        return
    since = max(told.starts_at, told.created_at)
    among = [Mailed(customer, since, False) for customer in crowd.of(told.audience) if customer not in crowd.signed_up]
    story.till.redeem(among, round((told.uses + told.undone) * told.walk_in))


def _mailed(
    story: _Story, campaign_id: int, mailing: Mailing, crowd: _Crowd, now: datetime, trail: list[dict[str, Any]]
) -> None:
    """One mailing of the past, what it brought in, and who wants no more."""
    assert mailing.at is not None  # noqa: S101
    at, rows = mailing.at, story.till.rows
    ids = [customer for customer in crowd.of(story.told.audience) if _was_there(customer, crowd, at, now)]
    if mailing.kind == "reminder":
        ids = [customer for customer in ids if customer not in rows or rows[customer]["redeemed_at"] >= at]

    def left_out(customer: int, moment: datetime) -> str | None:
        listed = crowd.suppressed.get(crowd.emails[customer])
        if listed is not None and listed["at"] < moment:
            return str(listed["reason"])
        used = rows.get(customer)
        return "has already redeemed" if used is not None and used["redeemed_at"] < moment else None

    seed = f"{people.SEED}: {story.told.code} {mailing.kind}"
    went = mailings.send(mailing, People(ids, crowd.gone, left_out), MANAGER[0], seed)
    _bring_in(story, mailing, went)
    _answers(campaign_id, story, went, crowd, now, trail)
    story.launched.append(at)
    _leave_one(mailing, went)
    _write_mailing(campaign_id, went)
    _deeds(story.told, campaign_id, mailing, went, trail)


def _was_there(customer: int, crowd: _Crowd, at: datetime, now: datetime) -> bool:
    return customer not in crowd.signed_up or at >= demo_offers.days(now)(demo_offers.SIGN_UPS + 1)


def _bring_in(story: _Story, mailing: Mailing, went: Went) -> None:
    told = story.told
    wanted = round((told.uses + told.undone) * (1 - told.walk_in))
    twice = sum(each.status not in NOT_YET for each in told.mailings) > 1
    share = 1.0 if not twice else 0.7 if mailing.kind == "announcement" else 0.3
    story.till.redeem([Mailed(customer, at, True) for customer, at in sorted(went.got.items())], round(wanted * share))


def _answers(
    campaign_id: int, story: _Story, went: Went, crowd: _Crowd, now: datetime, trail: list[dict[str, Any]]
) -> None:
    """Who wants no more of these, or is not there."""
    source = f"campaign {campaign_id}"
    for customer, issue in went.issues.items():
        if issue["state"] == "failed" and issue["text"].startswith("5.1."):
            words = f"{issue['smtp_code']} {issue['text']}"
            _suppress(crowd, customer, "bounced", issue["at"], source, words)
    for customer, got in sorted(went.got.items()):
        email = crowd.emails[customer]
        luck, later = _luck(email, story.told.code), timedelta(hours=0.2 + 30 * _luck(email, "later") ** 3)
        if luck < UNSUBSCRIBES and _suppress(crowd, customer, "unsubscribed", got + later, source):
            deed = "customer.unsubscribed", f"customer {customer}"
            trail.append(entry(got + later, *deed, actor="the customer", campaign=campaign_id))
        elif UNSUBSCRIBES <= luck < UNSUBSCRIBES + COMPLAINS:
            _suppress(crowd, customer, "complained", got + later, source, "feedback loop: abuse")
        elif UNSUBSCRIBES + COMPLAINS <= luck < UNSUBSCRIBES + COMPLAINS + COMES_BACK:
            is_known = customer in story.till.rows or got + later >= now
            if not is_known and _suppress(crowd, customer, "bounced", got + later, source, RETURNED):
                mailings.came_back(went, customer, got + later, RETURNED)


def _suppress(crowd: _Crowd, customer: int, reason: str, at: datetime, source: str, words: str = "") -> bool:
    email = crowd.emails[customer]
    if email in crowd.suppressed:
        return False
    crowd.suppressed[email] = {"reason": reason, "at": at, "source": source, "words": words}
    return True


def _write_mailing(campaign_id: int, went: Went) -> None:
    db.session.execute(insert(Batch), [{"campaign_id": campaign_id, **batch} for batch in went.batches])
    if went.issues:
        db.session.execute(insert(MailIssue), [{"campaign_id": campaign_id, **row} for row in went.issues.values()])
    # Whom it went to, whatever becomes of the offer.
    audience = select(Offer.audience_id).where(Offer.id == Campaign.offer_id).scalar_subquery()
    values = {**went.campaign, "audience_id": audience}
    statement = update(Campaign).where(Campaign.id == campaign_id).values(values)
    db.session.execute(statement.execution_options(synchronize_session=False))


def _leave_one(mailing: Mailing, went: Went) -> None:
    """Of a mailing long ago staff have decided what to do with what was uncertain."""
    for issue in went.issues.values():
        if issue["state"] == "uncertain" and mailing.kind == "reminder":
            words = f"{issue['text']}; left as it is by {MANAGER[0]}"
            issue |= {"state": "left", "text": words, "at": issue["at"] + timedelta(hours=2)}


def _deeds(told: Told, campaign_id: int, mailing: Mailing, went: Went, trail: list[dict[str, Any]]) -> None:
    launched = went.campaign["launched_at"]
    trail.append(entry(launched - timedelta(minutes=9), "mail.saved", str(campaign_id)))
    trail.append(entry(launched, "campaign.launched", told.code, campaign=campaign_id))
    if mailing.status == "cancelled":
        trail.append(entry(went.campaign["cancelled_at"], "campaign.cancelled", str(campaign_id)))
    if mailing.status == "paused":
        last = max(batch["windows"][-1] for batch in went.batches if batch["windows"])
        trail.append(entry(launched + timedelta(seconds=last), "campaign.paused", str(campaign_id)))
    if any(issue["state"] == "left" for issue in went.issues.values()):
        at = max(issue["at"] for issue in went.issues.values() if issue["state"] == "left")
        trail.append(entry(at, "campaign.left_uncertain", str(campaign_id), mails=1, state="uncertain"))


def _deeds_of_offer(told: Told, trail: list[dict[str, Any]]) -> None:
    first = told.former[0][0] if told.former else told.code
    trail.append(entry(told.created_at, "offer.created", first, name=told.name))
    codes = [*told.former, (told.code, told.renewed_at or told.created_at, None)]
    for (before, _, _), (code, at, _) in pairwise(codes):
        trail.append(entry(at, "offer.code_renewed", code, before=before))
    for code, _, closed in told.former:
        if closed is not None:
            trail.append(entry(closed, "offer.code_closed", code, offer=told.code))
    if told.paused_at is not None:
        trail.append(entry(told.paused_at, "offer.paused", told.code))


def _luck(*words: str) -> float:
    """A chance from 0 to 1 that is somebody's own: the same whoever else there is."""
    return crc32(" ".join(words).encode()) / 2**32
