"""The demo's data is consistent: every page has content, totals are correct."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select, text

from local.demo import scenario
from tests.support.sessions import start_session
from webapp.accounts.models import StaffUser
from webapp.campaigns import stats_queries
from webapp.campaigns.deliveries import queries as delivery_queries
from webapp.campaigns.models import Campaign
from webapp.core.extensions import db
from webapp.offers.models import Offer
from webapp.redemptions import guessing

Query = Callable[[str], list[tuple[Any, ...]]]

# One worker process seeds the database for all of them.

SUMMED = ("sent", "failed", "deferred", "uncertain", "skipped", "left")


@pytest.fixture
def manager(shop: Flask) -> FlaskClient:
    client = shop.test_client()
    user = db.session.scalar(select(StaffUser).where(StaffUser.email == scenario.MANAGER.email))
    assert user is not None
    start_session(client, user)
    return client


def test_there_are_offers_in_every_state_and_of_both_discount_types(query: Query) -> None:
    offers = db.session.scalars(select(Offer)).all()
    now = query("select now()")[0][0]

    assert {offer.state(now) for offer in offers} == {"scheduled", "live", "paused", "ended", "used_up"}
    assert {offer.discount_type for offer in offers} == {"percent", "amount"}
    assert any(offer.personal_code_required for offer in offers)
    assert any(offer.max_redemptions and 0.9 <= offer.redeemed / offer.max_redemptions < 1 for offer in offers)
    assert any(offer.frozen_at is None for offer in offers)
    assert query("select count(*) filter (where closed_at is null), count(closed_at) from offer_code") == [(14, 1)]
    assert guessing.list_top_guessing_alerts(9)


def test_there_are_campaigns_in_every_state(query: Query) -> None:
    counts = Counter(db.session.scalars(select(Campaign.status)))

    assert set(counts) == {"draft", "scheduled", "preparing", "paused", "cancelled", "done"}
    reasons = query("select pause_reason from campaign where status = 'paused' order by 1")
    assert re.match(r"\d+ of the last \d+ emails were permanently rejected", reasons[0][0])
    assert reasons[1][0] == f"paused by {scenario.MANAGER.email}"
    assert query("select count(*) from campaign where kind = 'reminder' and status = 'done'") == [(2,)]


@pytest.mark.parametrize(
    ("page", "texts"),
    [
        ("/", "has reached its limit|failed redemption attempts|could not be imported|to resolve|ends soon|is paused"),
        ("/offers?state=paused", "Teapot trade-in"),
        ("/campaigns?status=cancelled", "Teapot trade-in"),
        ("/customers", "example"),
        ("/customers?q=佐藤", "佐藤"),
        ("/customers/audiences", "VIP"),
        ("/customers/imports", "newsletter-sign-ups.csv"),
        ("/customers/do-not-mail", "example"),
        ("/redemptions", "Personal link"),
        ("/settings/profile", "Mara Lind"),
    ],
)
def test_every_page_has_content(manager: FlaskClient, page: str, texts: str) -> None:
    response = manager.get(page)

    assert response.status_code == 200
    for text_shown in texts.split("|"):
        assert text_shown in response.text


def test_every_offer_campaign_and_import_has_a_page(manager: FlaskClient, query: Query) -> None:
    for kind in ("offer", "campaign"):
        for (row_id,) in query(f"select id from {kind}"):
            assert manager.get(f"/{kind}s/{row_id}", follow_redirects=True).status_code == 200
    ids: dict[str, int] = dict(query("select filename, id from customer_import"))
    import_page = manager.get(f"/customers/imports/{ids['newsletter-sign-ups.csv']}").text
    for reason in (
        "This email address is not valid.",
        "Enter an email address.",
        "Check for a missing quotation mark",
        "source ID",
        "language tag",
    ):
        assert reason in import_page


@pytest.mark.parametrize(
    "violations",
    [
        # Redemptions: while the offer ran, by customers of its audience who existed then; orders from the API only.
        "select 1 from redemption r join offer o on o.id = r.offer_id where r.redeemed_at < o.starts_at"
        " or r.redeemed_at >= o.ends_at or r.redeemed_at >= o.paused_at or r.redeemed_at > now()",
        "select 1 from redemption r join offer o on o.id = r.offer_id where o.audience_id is not null and not exists"
        " (select from audience_member m where m.audience_id = o.audience_id and m.customer_id = r.customer_id)",
        "select 1 from redemption r left join customer c on c.id = r.customer_id"
        " where c.id is null or c.created_at > r.redeemed_at",
        "select 1 from redemption where (channel = 'api') <> (order_id is not null) or (channel = 'api') <>"
        " (api_key_id is not null)",
        "select 1 from redemption group by api_key_id, order_id having count(order_id) > 1",
        "select 1 from rollback where rolled_back_at <= redeemed_at or rolled_back_at > now()",
        "select 1 from rollback b join redemption r using (customer_id, offer_id)"
        " where r.redeemed_at < b.rolled_back_at",
        # Counters.
        "select 1 from offer o left join offer_counter c on c.offer_id = o.id"
        " left join (select offer_id, count(*) as n from redemption group by 1) r on r.offer_id = o.id"
        " where c.max_redemptions is distinct from o.max_redemptions"
        " or c.redeemed is distinct from case when c.max_redemptions is null then 0 else coalesce(r.n, 0) end",
        "select 1 from offer o where (frozen_at is null) <>"
        " (not exists (select from redemption r where r.offer_id = o.id)"
        " and not exists (select from campaign c where c.offer_id = o.id and c.launched_at is not null))",
        "select 1 from (select offer_id, date_trunc('hour', redeemed_at, 'UTC') as hour, count(*) as n from redemption"
        " where redeemed_at < (select counted_until from redemption_tally) group by 1, 2) r"
        " full join redemption_hour h using (offer_id, hour) where r.n is distinct from h.n",
        "select 1 from (select offer_id, sum(n) as n from redemption_hour group by 1) h"
        " full join redemption_total t using (offer_id) where h.n is distinct from t.n",
        "select 1 from (select hour, sum(n) as n from redemption_hour group by 1) h"
        " full join hour_total t using (hour) where h.n is distinct from t.n",
        # Campaigns: frozen batches, windows in order, correct totals, rows only for recipients.
        "select 1 from batch where first_id <> gaps[1] or last_id <> (select sum(g) from unnest(gaps) g)"
        " or cardinality(gaps) > 500 or window_end <> window_start",
        "select 1 from batch where status = 'done' and window_start <> cardinality(gaps)",
        "select 1 from campaign c where launched_at is not null and status <> 'preparing' and total <>"
        " (select sum(cardinality(gaps)) from batch b where b.campaign_id = c.id)",
        "select 1 from campaign c where status in ('done', 'cancelled') and sent_in_batches is distinct from"
        " (select sum(sent) from batch b where b.campaign_id = c.id)",
        "select 1 from campaign c join batch b on b.campaign_id = c.id where c.status = 'done' and b.status <> 'done'",
        "select 1 from campaign c join offer o on o.id = c.offer_id where c.launched_at is not null"
        " and c.audience_id is distinct from o.audience_id",
        "select 1 from campaign c join batch b on b.campaign_id = c.id"
        " where c.status = 'cancelled' and b.status not in ('done', 'cancelled')",
        "select 1 from batch b, generate_series(3, cardinality(windows), 2) n"
        " where windows[n] <= windows[n - 2] or windows[n + 1] < windows[n - 1]",
        "select 1 from mail_issue i where not exists (select from batch b where b.campaign_id = i.campaign_id"
        " and b.first_id <= i.customer_id and b.last_id >= i.customer_id)",
        "select 1 from mail_issue i join campaign c on c.id = i.campaign_id"
        " where i.at < c.launched_at or i.state = 'deferred' and c.status not in ('paused', 'sending')",
        "select 1 from mail_issue where (state = 'deferred') <> (next_at is not null)",
        # Skipped recipients are those who are on the suppression list.
        "select 1 from mail_issue i join customer c on c.id = i.customer_id"
        " left join suppression s on s.email = c.email"
        " where i.state = 'skipped' and i.text in ('bounced', 'unsubscribed', 'complained')"
        " and (s.email is null or s.at > i.at or s.reason <> i.text)",
        "select 1 from suppression where at > now()",
        "select 1 from suppression s where source like 'campaign %' and not exists"
        " (select from campaign c where s.source = 'campaign ' || c.id and c.launched_at <= s.at)",
        "select 1 from mail_issue i join redemption r on r.customer_id = i.customer_id"
        " join campaign c on c.id = i.campaign_id and c.offer_id = r.offer_id"
        " where c.status <> 'preparing' and i.text = 'has already redeemed' and r.redeemed_at > i.at"
        # Unless that redemption was undone since, and the customer redeemed again.
        " and not exists (select from rollback b where (b.customer_id, b.offer_id) = (r.customer_id, r.offer_id)"
        " and b.redeemed_at < i.at)",
        # The audit log does not run ahead of the clock.
        "select 1 from audit_entry where at > now() + interval '1 minute'",
        # All addresses are reserved for examples.
        r"select 1 from customer where email !~ '[.@]example\.(com|net|org)$'",
    ],
)
def test_no_row_violates_a_rule_of_the_application(query: Query, violations: str) -> None:
    assert query(f"{violations} limit 3") == []


def test_campaign_figures_are_sums_over_the_recipients(query: Query) -> None:
    for (campaign_id,) in query("select id from campaign where total > 0"):
        stats = stats_queries.get_campaign_stats(campaign_id)
        counts: Counter[str] = Counter(recipient.state for recipient in delivery_queries.iter_recipients(campaign_id))
        counts["sent"] += counts["sent_later"]
        assert {name: getattr(stats, name) for name in SUMMED} == {name: counts[name] for name in SUMMED}
        assert stats.waiting == counts["waiting"] + counts["cancelled"]


def test_customers_have_names_in_many_scripts_and_belong_to_audiences(query: Query) -> None:
    assert query("select count(*) from customer") == [(10_000,)]
    scripts = r"Ж-я|Α-ω|א-ת|ا-ي|अ-ह|一-龥|가-힣|ก-ฮ|ა-ჰ|Ա-ֆ|አ-ፐ|க-ஹ|অ-হ"
    for script in scripts.split("|"):
        assert query(f"select count(*) > 5 from customer where name ~ '[{script}]'") == [(True,)]
    sizes: dict[str, int] = dict(
        query("select a.name, count(*) from audience a join audience_member m on m.audience_id = a.id group by 1")
    )
    assert {name for name, n in sizes.items() if n > 300} == {"VIP", "Newsletter", "Lapsed"}


def test_redemptions_peak_in_the_evening_and_after_an_email(query: Query) -> None:
    assert query("select count(*) between 3000 and 5000 from redemption") == [(True,)]
    zone = f"redeemed_at at time zone '{scenario.TIME_ZONE}'"
    evening, morning = query(
        f"select count(*) filter (where extract(hour from {zone}) in (18, 19, 20)),"
        f" count(*) filter (where extract(hour from {zone}) in (5, 6, 7)) from redemption"
    )[0]
    assert evening > 5 * morning
    # The first three days of a campaign bring more redemptions than the three after them.
    first, later = query(
        "select count(*) filter (where r.redeemed_at < c.launched_at + interval '3 days'),"
        " count(*) filter (where r.redeemed_at - c.launched_at between interval '3 days' and interval '6 days')"
        " from redemption r join campaign c using (offer_id) where c.kind = 'announcement' and c.status = 'done'"
    )[0]
    assert first > 1.4 * later


def test_no_password_and_no_api_key_is_known(query: Query) -> None:
    assert query("select distinct password_hash from staff_user") == [("!",)]
    assert query("select count(*) from invitation") == [(0,)]
    assert query("select count(distinct secret_hash) from api_key") == [(2,)]
    assert db.session.execute(text("select count(*) from api_key where octet_length(secret_hash) = 32")).scalar() == 2
