"""The staff home page: first steps, figures, attention list."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from flask.testing import FlaskClient
from sqlalchemy import update

from tests.support.factories import MakeCustomer, MakeOffer
from webapp.accounts.models import StaffUser
from webapp.campaigns.models import Batch, Campaign, MailIssue
from webapp.core.extensions import db
from webapp.core.settings import DEFAULT_SHOP_NAME, Settings
from webapp.customers.models import CustomerImport
from webapp.offers.models import Offer
from webapp.overview import dashboard
from webapp.redemptions.models import Redemption
from webapp.shop import actions as shop_actions
from webapp.shop.models import ShopValues

NOW = datetime.now(UTC)


def save(*rows: object) -> None:
    db.session.add_all(rows)
    db.session.commit()


def add_redemptions(offer: Offer, *times: datetime) -> None:
    save(*[Redemption(offer_id=offer.id, customer_id=n, redeemed_at=at, channel="form") for n, at in enumerate(times)])


def add_campaign(offer: Offer, sent: int = 0, **values: Any) -> Campaign:
    row = Campaign(
        offer_id=offer.id,
        text="t",
        **{"subject": "Summer mail", "status": "done", "launched_at": NOW, "total": sent, **values},
    )
    save(row)
    save(
        Batch(
            campaign_id=row.id,
            seq=1,
            first_id=1,
            last_id=sent,
            gaps=[1] * sent,
            status="done",
            sent=sent,
        )
    )
    return row


def section(page: str, name: str) -> str:
    found = re.search(rf'<section class="card" id="{name}".*?</section>', page, re.S)
    return found[0] if found else ""


class TestFirstSteps:
    def test_the_first_step_is_to_name_the_shop(
        self, staff: FlaskClient, with_settings: Callable[..., Settings], make_customer: MakeCustomer
    ) -> None:
        make_customer()
        with_settings(shop_name=DEFAULT_SHOP_NAME)
        before = section(staff.get("/").text, "first-steps")
        assert before.count("Done:") == 1
        assert re.findall(r'class="btn btn-primary" href="([^"]*)"', before) == ["/settings/shop"]
        shop_actions.save_shop(ShopValues("Florist"), "tests")
        after = section(staff.get("/").text, "first-steps")
        assert after.count("Done:") == 2
        assert re.findall(r'class="btn btn-primary" href="([^"]*)"', after) == ["/offers/new"]

    def test_without_customers_the_next_step_is_the_import(self, staff: FlaskClient) -> None:
        steps = section(staff.get("/").text, "first-steps")
        assert steps.count("Done:") == 1
        assert steps.count('class="btn btn-primary"') == 1
        assert "Import customers" in steps

    def test_with_customers_the_next_step_is_an_offer(self, staff: FlaskClient, make_customer: MakeCustomer) -> None:
        make_customer()
        steps = section(staff.get("/").text, "first-steps")
        assert (steps.count("Done:"), "New offer" in steps) == (2, True)

    def test_with_an_offer_the_next_step_is_a_campaign(
        self, staff: FlaskClient, make_customer: MakeCustomer, make_offer: MakeOffer
    ) -> None:
        make_customer()
        make_offer()
        steps = section(staff.get("/").text, "first-steps")
        assert (steps.count("Done:"), "Write the announcement" in steps) == (3, True)

    def test_an_offer_that_has_ended_is_not_the_next_step(
        self, staff: FlaskClient, make_customer: MakeCustomer, make_offer: MakeOffer
    ) -> None:
        make_customer()
        current = make_offer("LIVE")
        make_offer("ENDED", starts_at=NOW - timedelta(9), ends_at=NOW - timedelta(1))
        with_current = section(staff.get("/").text, "first-steps")
        db.session.execute(update(Offer).values(ends_at=NOW - timedelta(1), starts_at=NOW - timedelta(9)))
        db.session.commit()
        without = section(staff.get("/").text, "first-steps")
        assert f"/offers/{current.id}/mail" in with_current
        assert (without.count("Done:"), "New offer" in without, "announcement</a>" in without) == (2, True, False)

    @pytest.mark.parametrize("start", [lambda offer: add_campaign(offer, 1), lambda offer: add_redemptions(offer, NOW)])
    def test_figures_replace_the_first_steps_after_sending_or_redeeming(
        self, staff: FlaskClient, make_offer: MakeOffer, start: Callable[[Offer], object]
    ) -> None:
        start(make_offer())
        page = staff.get("/").text
        assert ("first-steps" in page, "Redemptions today" in page) == (False, True)

    def test_a_viewer_sees_no_action_buttons(self, sign_in: Callable[..., FlaskClient]) -> None:
        assert 'class="btn btn-primary"' not in section(sign_in("viewer").get("/").text, "first-steps")


class TestFigures:
    def test_only_live_offers_are_counted(self, staff: FlaskClient, make_offer: MakeOffer) -> None:
        make_offer("LIVE")
        make_offer("PAUSED", paused_at=NOW)
        make_offer("ENDED", starts_at=NOW - timedelta(9), ends_at=NOW - timedelta(1))
        make_offer("LATER", starts_at=NOW + timedelta(1))
        make_offer("USEDUP", max_redemptions=1, redeemed=1)
        make_offer("FOREVER", ends_at=None)
        assert dashboard.get_dashboard_figures("UTC").live_offers == 2

    def test_redemptions_are_counted_for_each_of_thirty_days(self, make_offer: MakeOffer) -> None:
        now = datetime.now(UTC)
        add_redemptions(make_offer(), now, now, now - timedelta(1), now - timedelta(29), now - timedelta(31))
        figures = dashboard.get_dashboard_figures("UTC")
        assert [n for _, n in figures.redemptions_per_day] == [1, *[0] * 27, 1, 2]
        assert (figures.redemptions_today, figures.redemptions_yesterday) == (2, 1)

    @pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "UTC", "Pacific/Pago_Pago"])
    def test_days_are_those_of_the_readers_time_zone(self, make_offer: MakeOffer, zone: str) -> None:
        """At any time, at least one of these zones has another date than UTC."""
        today = datetime.now(ZoneInfo(zone)).replace(hour=0, minute=0, second=0, microsecond=0)
        first_day = today - timedelta(29)
        hour = timedelta(hours=1)
        times = [first_day - hour, first_day, first_day + hour, today - hour, today]
        add_redemptions(make_offer(), *times)

        per_day = dashboard.get_dashboard_figures(zone).redemptions_per_day

        assert [day for day, _ in per_day] == [(first_day + timedelta(n)).date() for n in range(30)]
        assert [n for _, n in per_day] == [2, *[0] * 27, 1, 1]

    def test_the_chart_contains_the_daily_counts(self, staff: FlaskClient, make_offer: MakeOffer) -> None:
        add_redemptions(make_offer(), NOW)
        data = re.search(r'<script type="application/json">(.*?)</script>', staff.get("/").text, re.S)
        assert data
        values = json.loads(data[1])["series"][0]["values"]
        assert (len(values), sum(values)) == (30, 1)

    def test_the_conversion_rate_counts_recipients_of_announcements(self, make_offer: MakeOffer) -> None:
        summer = make_offer()
        add_campaign(summer, sent=8)
        add_campaign(summer, sent=6, kind="reminder")
        add_redemptions(summer, NOW, NOW)
        add_redemptions(make_offer("UNMAILED"), NOW)
        figures = dashboard.get_dashboard_figures("UTC")
        assert (figures.emails_sent, figures.conversion_rate) == (14, 0.25)

    def test_the_conversion_rate_is_at_most_one(self, make_offer: MakeOffer) -> None:
        """Customers who learned the code elsewhere redeem, too."""
        summer = make_offer()
        add_campaign(summer, sent=1)
        add_redemptions(summer, NOW, NOW)
        assert dashboard.get_dashboard_figures("UTC").conversion_rate == 1

    def test_a_small_conversion_rate_is_not_shown_as_zero(self, staff: FlaskClient, make_offer: MakeOffer) -> None:
        summer = make_offer()
        add_campaign(summer, sent=5000)
        add_redemptions(summer, NOW)
        assert "&lt;0.1%" in staff.get("/").text

    def test_without_recent_emails_there_is_no_conversion_rate(self, make_offer: MakeOffer) -> None:
        add_campaign(make_offer(), sent=5, launched_at=NOW - timedelta(40))
        figures = dashboard.get_dashboard_figures("UTC")
        assert (figures.emails_sent, figures.conversion_rate) == (0, None)


class TestAttention:
    def test_the_attention_list_is_hidden_when_empty(self, staff: FlaskClient, make_offer: MakeOffer) -> None:
        add_campaign(make_offer(max_redemptions=10, redeemed=1), 1)
        save(CustomerImport(filename="good.csv", media_type="text/csv", status="done"))
        assert 'id="attention"' not in staff.get("/").text

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"status": "paused", "pause_reason": "The relay refuses us"}, "is paused: The relay refuses us."),
            ({"status": "paused", "pause_reason": "paused by ann@example.com"}, "was paused by ann@example.com."),
            (
                {"status": "sending", "delivery_warning": "The relay does not answer."},
                "(announcement)</a> has a problem: The relay does not answer.",
            ),
        ],
    )
    def test_a_campaign_with_a_problem_is_listed_with_its_reason(
        self, staff: FlaskClient, make_offer: MakeOffer, values: dict[str, str], message: str
    ) -> None:
        add_campaign(make_offer(), 1, **values)
        assert message in section(staff.get("/").text, "attention")

    def test_a_user_is_shown_by_name_unless_it_is_ambiguous(
        self, staff: FlaskClient, make_offer: MakeOffer, make_staff_user: Callable[..., StaffUser]
    ) -> None:
        ann = make_staff_user("viewer", "ann@example.com")
        add_campaign(make_offer(), 1, status="paused", pause_reason="paused by ann@example.com")
        assert f"was paused by {ann.name}." in section(staff.get("/").text, "attention")
        assert f"Paused by {ann.name}" in staff.get("/campaigns").text
        db.session.execute(update(StaffUser).values(name=ann.name))
        db.session.commit()
        assert "was paused by ann@example.com." in section(staff.get("/").text, "attention")

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"max_redemptions": 1000, "redeemed": 900}, "has 100 of 1,000 redemptions left."),
            ({"max_redemptions": 1, "redeemed": 1}, "has reached its limit of 1 redemption."),
            ({"max_redemptions": 2, "redeemed": 2}, "has reached its limit of 2 redemptions."),
            ({"ends_at": NOW + timedelta(2)}, "ends soon"),
        ],
    )
    def test_an_offer_that_ends_or_runs_out_soon_is_listed(
        self, staff: FlaskClient, make_offer: MakeOffer, values: dict[str, Any], message: str
    ) -> None:
        make_offer(name="Hot days", **values)
        page = section(staff.get("/").text, "attention")
        assert "Hot days" in page
        assert message in page

    @pytest.mark.parametrize(
        "values",
        [
            {"max_redemptions": 1000, "redeemed": 899},
            {"max_redemptions": None, "redeemed": 5},
            {"ends_at": NOW + timedelta(4)},
            {"ends_at": NOW + timedelta(2), "paused_at": NOW},
            {"starts_at": NOW - timedelta(9), "ends_at": NOW - timedelta(1)},
        ],
    )
    def test_other_offers_are_not_listed(self, make_offer: MakeOffer, values: dict[str, Any]) -> None:
        make_offer(**values)
        assert not dashboard.get_attention_list()

    def test_a_failed_import_is_listed(self, staff: FlaskClient) -> None:
        save(
            CustomerImport(filename="<b>bad</b>.csv", media_type="text/csv", status="failed", error="It is a picture.")
        )
        save(
            CustomerImport(
                filename="old.csv", media_type="text/csv", status="failed", created_at=NOW - timedelta(days=7)
            )
        )
        page = section(staff.get("/").text, "attention")
        assert "It is a picture." in page
        assert "<b>bad" not in page
        assert "old.csv" not in page

    def test_at_most_ten_objects_of_a_kind_are_listed(self, make_offer: MakeOffer) -> None:
        for n in range(11):
            make_offer(f"CODE{n}", max_redemptions=1, redeemed=1, ends_at=NOW + timedelta(hours=20 - n))
            save(CustomerImport(filename=f"{n}.csv", media_type="text/csv", status="failed"))
        found = dashboard.get_attention_list()
        soonest = [f"CODE{n}" for n in range(10, 0, -1)]
        assert [offer.code for offer in found.nearly_used_up_offers] == soonest
        assert [offer.code for offer in found.offers_ending_soon] == soonest
        assert [each.filename for each in found.failed_imports] == [f"{n}.csv" for n in range(10, 0, -1)]

    def test_at_most_twenty_campaigns_are_listed_newest_first(self, make_offer: MakeOffer) -> None:
        ids = [add_campaign(make_offer(f"CODE{n}"), 1, status="paused").id for n in range(21)]
        stalled = dashboard.get_attention_list().stalled_campaigns
        assert [campaign.id for campaign, _ in stalled] == ids[:0:-1]


class TestLinks:
    def links(self, client: FlaskClient) -> set[str]:
        content = client.get("/").text.partition('<main id="content"')[2]
        return set(re.findall(r'<a [^>]*?href="(/[^"]*)"', content))

    def test_every_link_of_the_first_steps_leads_to_a_page(
        self, staff: FlaskClient, make_customer: MakeCustomer, make_offer: MakeOffer
    ) -> None:
        links = self.links(staff)
        make_customer()
        links |= self.links(staff)
        make_offer()
        links |= self.links(staff)
        assert {link: staff.get(link).status_code for link in links} == dict.fromkeys(links, 200)

    def test_every_link_of_the_attention_list_leads_to_a_page(self, staff: FlaskClient, make_offer: MakeOffer) -> None:
        add_campaign(make_offer(max_redemptions=1, redeemed=1), 1, status="paused")
        save(CustomerImport(filename="bad.csv", media_type="text/csv", status="failed", error="It is a picture."))
        links = self.links(staff)
        assert len(links) == 7
        assert {link: staff.get(link).status_code for link in links} == dict.fromkeys(links, 200)


class TestDuringSending:
    def test_the_figures_poll_until_the_campaign_is_done(self, staff: FlaskClient, make_offer: MakeOffer) -> None:
        row = add_campaign(make_offer(), 3, status="sending")
        during = staff.get("/now").text
        row.status = "done"
        db.session.commit()
        afterwards = staff.get("/now").text
        assert 'hx-get="/now"' in during
        assert "hx-get" not in afterwards
        assert during.lstrip().startswith('<div id="now"')

    def test_uncertain_deliveries_are_listed(self, staff: FlaskClient, make_offer: MakeOffer) -> None:
        row = add_campaign(make_offer(), 3)
        save(MailIssue(campaign_id=row.id, customer_id=1, state="uncertain"))
        other = add_campaign(make_offer("OTHER"), 3)
        save(*[MailIssue(campaign_id=other.id, customer_id=n, state="uncertain") for n in (1, 2)])
        uncertain = dashboard.get_attention_list().uncertain_campaigns
        assert [(campaign.id, count) for campaign, _, count in uncertain] == [(other.id, 2), (row.id, 1)]
        page = section(staff.get("/").text, "attention")
        assert "has 1 uncertain delivery to resolve." in page
        assert f'href="/campaigns/{row.id}/recipients?state=uncertain"' in page
