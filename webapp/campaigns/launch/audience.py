"""Select and count the recipients of a campaign."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, text

from webapp.campaigns.models import Campaign
from webapp.core.extensions import db
from webapp.customers import queries as customer_queries
from webapp.offers.models import Offer
from webapp.redemptions import queries as redemption_queries

# Number of customers that a launch checks for one to remind; a larger audience is assumed to have one.
REMINDER_SCAN_LIMIT = 10_000


@dataclass(frozen=True)
class AudienceCount:
    """The customers of an audience by whether they receive a campaign.

    Each customer is counted once.

    :ivar already_sent: received an earlier campaign of this kind that was cancelled; skipped unless staff include them.
    """

    recipients: int
    suppressed: int
    redeemed: int = 0
    already_sent: int = 0


# Recipients of cancelled campaigns of this kind, since the last one that was done, who would receive the email again.
# An uncertain delivery counts according to the campaign's policy. A delivery with a pending retry is `deferred`, then
# `skipped`: a second copy has already been decided, and this campaign sends it.
_CANCELLED_CAMPAIGNS_SQL = """
    select x.id from campaign x where x.offer_id = :offer and x.kind = :kind and x.status = 'cancelled'
      and x.id > coalesce((select max(d.id) from campaign d
        where d.offer_id = :offer and d.kind = :kind and d.status = 'done' and d.id <> :campaign), 0)
"""
_ALREADY_SENT_SQL = f"""
    select walk.id from batch b
    cross join lateral (
      select place, cast(sum(gap) over (order by place) as bigint) as id
      from unnest(b.gaps) with ordinality as u(gap, place)
    ) walk
    left join mail_issue i on i.campaign_id = b.campaign_id and i.customer_id = walk.id
    where b.campaign_id in ({_CANCELLED_CAMPAIGNS_SQL}) and b.last_id >= :first and b.first_id <= :last
      and case when i.state is null then walk.place <= b.window_start
        else i.state = 'sent_later' or i.state in ('uncertain', 'left') and :hold end
"""  # noqa: S608
_AUDIENCE_SQL = """
    select c.id, c.email from customer c where c.erased_at is null and (cast(:audience as bigint) is null
      or exists (select from audience_member m where m.audience_id = :audience and m.customer_id = c.id))
"""
_COUNT_AUDIENCE_SQL = f"""
    select count(*) filter (where s.email is not null) as suppressed,
      count(*) filter (where s.email is null and r.customer_id is not null) as redeemed,
      count(*) filter (where s.email is null and r.customer_id is null and got.id is not null) as already_sent,
      count(*) filter (where s.email is null and r.customer_id is null and got.id is null) as recipients
    from ({_AUDIENCE_SQL}) a
    left join suppression s on s.email = a.email
    left join redemption r on :reminds and r.customer_id = a.id and r.offer_id = :offer
    left join (select distinct id from ({_ALREADY_SENT_SQL}) g) got on got.id = a.id
"""  # noqa: S608


def count_campaign_recipients(campaign: Campaign, offer: Offer) -> AudienceCount:
    """Count the recipients that a campaign would have if it were launched now."""
    if campaign.kind == "announcement" and not has_cancelled_campaign(campaign):
        totals = customer_queries.count_audience_members(offer.audience_id)
        return AudienceCount(totals.total - totals.suppressed, totals.suppressed)
    row = db.session.execute(
        text(_COUNT_AUDIENCE_SQL),
        {
            **_query_params(campaign),
            "audience": offer.audience_id,
            "reminds": campaign.kind == "reminder",
            "first": 0,
            "last": 2**63 - 1,
        },
    ).one()
    return AudienceCount(row.recipients, row.suppressed, row.redeemed, row.already_sent)


def has_cancelled_campaign(campaign: Campaign) -> bool:
    """Return whether a campaign of this kind was cancelled after its launch.

    Some customers may have received it.
    """
    return bool(
        db.session.execute(
            text(f"select exists ({_CANCELLED_CAMPAIGNS_SQL} and x.total > 0)"), _query_params(campaign)
        ).scalar()
    )


def has_customers_to_remind(offer: Offer) -> bool:
    """Return whether the audience has a customer to remind.

    It checks at most `REMINDER_SCAN_LIMIT` customers.
    """
    scanned_count, not_redeemed_count = db.session.execute(
        text(
            f"""
            select count(*), count(*) filter (where not exists (
              select from redemption r where r.customer_id = f.id and r.offer_id = :offer
            )) from (
              select a.id from ({_AUDIENCE_SQL}) a
              where not exists (select from suppression s where s.email = a.email) limit {REMINDER_SCAN_LIMIT}
            ) f
            """  # noqa: S608
        ),
        {"offer": offer.id, "audience": offer.audience_id},
    ).one()
    return bool(not_redeemed_count) or scanned_count >= REMINDER_SCAN_LIMIT


def filter_recipients(campaign: Campaign | Row[Any], ids: Sequence[int]) -> list[int]:
    """Return the recipients of a campaign among customers of its audience.

    A reminder excludes customers who have redeemed. Every kind excludes customers who received a cancelled campaign
    before, unless `mails_again` is set. Suppressed customers are skipped later, just before each window is sent.

    :param ids: customer ids, ascending.
    """
    excluded_ids: set[int] = set()
    if campaign.kind == "reminder":
        excluded_ids |= redemption_queries.find_redeemed_customer_ids(campaign.offer_id, ids)
    if not campaign.mails_again and ids:
        already_sent = db.session.execute(
            text(_ALREADY_SENT_SQL), {**_query_params(campaign), "first": ids[0], "last": ids[-1]}
        )
        excluded_ids |= set(already_sent.scalars())
    return [customer_id for customer_id in ids if customer_id not in excluded_ids]


def is_blocked_by_cancelled_campaign(campaign: Campaign | Row[Any]) -> bool:
    """Return whether a worker is still sending an email of a cancelled campaign.

    Then the recipients of that campaign are not final yet.
    """
    if campaign.mails_again:
        return False
    return bool(
        db.session.execute(
            text(
                f"""
                select exists (
                  select from batch b where b.campaign_id in ({_CANCELLED_CAMPAIGNS_SQL}) and b.status = 'sending'
                ) or exists (
                  select from mail_issue i
                  where i.campaign_id in ({_CANCELLED_CAMPAIGNS_SQL}) and i.state = 'uncertain' and i.next_at > now()
                )
                """  # noqa: S608
            ),
            _query_params(campaign),
        ).scalar()
    )


def _query_params(campaign: Campaign | Row[Any]) -> dict[str, object]:
    return {
        "campaign": campaign.id,
        "offer": campaign.offer_id,
        "kind": campaign.kind,
        "hold": campaign.uncertain_policy == "hold",
    }
