"""The first page."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import update

from webapp.accounts.models import StaffUser
from webapp.campaigns.models import Batch, Campaign, MailIssue
from webapp.core.extensions import db
from webapp.customers.models import Customer, CustomerImport
from webapp.offers.models import Offer
from webapp.overview import dashboard
from webapp.redemptions.models import Redemption

NOW = datetime.now(UTC)
Make = Callable[..., Any]


def put(*rows: object) -> None:
    db.session.add_all(rows)
    db.session.commit()


def redeemed(offer: Offer, *moments: datetime) -> None:
    put(*[Redemption(offer_id=offer.id, customer_id=n, redeemed_at=at, channel="form") for n, at in enumerate(moments)])


def campaign(offer: Offer, sent: int = 0, **values: Any) -> Campaign:
    row = Campaign(
        offer_id=offer.id,
        text="t",
        **{"subject": "Summer mail", "status": "done", "launched_at": NOW, "total": sent, **values},
    )
    put(row)
    put(
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
    def test_somebody_new_is_led_to_the_import(self, staff: FlaskClient) -> None:
        steps = section(staff.get("/").text, "first-steps")
        assert steps.count("Done:") == 0
        assert steps.count('class="btn btn-primary"') == 1
        assert "Import customers" in steps

    def test_then_to_the_offer(self, staff: FlaskClient, customer: Make) -> None:
        customer()
        steps = section(staff.get("/").text, "first-steps")
        assert (steps.count("Done:"), "New offer" in steps) == (1, True)

    def test_then_to_its_mail(self, staff: FlaskClient, customer: Make, offer: Make) -> None:
        customer()
        offer()
        steps = section(staff.get("/").text, "first-steps")
        assert (steps.count("Done:"), "New campaign" in steps) == (2, True)

    @pytest.mark.parametrize("start", [lambda o: campaign(o, 1), lambda o: redeemed(o, NOW)])
    def test_once_things_run_the_figures_are_there_instead(
        self, staff: FlaskClient, offer: Make, start: Callable[[Offer], object]
    ) -> None:
        start(offer())
        page = staff.get("/").text
        assert ("first-steps" in page, "Redemptions today" in page) == (False, True)

    def test_a_viewer_is_offered_nothing_they_may_not_do(self, sign_in: Make) -> None:
        assert 'class="btn btn-primary"' not in section(sign_in("viewer").get("/").text, "first-steps")


class TestFigures:
    def test_only_live_offers_are_counted(self, staff: FlaskClient, offer: Make) -> None:
        offer("LIVE")
        offer("PAUSED", paused_at=NOW)
        offer("ENDED", starts_at=NOW - timedelta(9), ends_at=NOW - timedelta(1))
        offer("LATER", starts_at=NOW + timedelta(1))
        offer("USEDUP", max_redemptions=1, redeemed=1)
        offer("FOREVER", ends_at=None)
        assert dashboard.get_dashboard_figures("UTC").live_offers == 2

    def test_every_day_of_the_last_thirty_has_its_number(self, offer: Make) -> None:
        now = datetime.now(UTC)
        redeemed(offer(), now, now, now - timedelta(1), now - timedelta(29), now - timedelta(31))
        figures = dashboard.get_dashboard_figures("UTC")
        assert [n for _, n in figures.redemptions_per_day] == [1, *[0] * 27, 1, 2]
        assert (figures.redemptions_today, figures.redemptions_yesterday) == (2, 1)

    def test_the_chart_shows_the_same(self, staff: FlaskClient, offer: Make) -> None:
        redeemed(offer(), NOW)
        data = re.search(r'<script type="application/json">(.*?)</script>', staff.get("/").text, re.S)
        assert data
        values = json.loads(data[1])["series"][0]["values"]
        assert (len(values), sum(values)) == (30, 1)

    def test_the_share_is_of_those_who_were_sent_an_announcement(self, offer: Make) -> None:
        summer = offer()
        campaign(summer, sent=8)
        campaign(summer, sent=6, kind="reminder")
        redeemed(summer, NOW, NOW)
        redeemed(offer("UNMAILED"), NOW)
        figures = dashboard.get_dashboard_figures("UTC")
        assert (figures.emails_sent, figures.conversion_rate) == (14, 0.25)

    def test_a_small_share_is_more_than_nothing(self, staff: FlaskClient, offer: Make) -> None:
        summer = offer()
        campaign(summer, sent=5000)
        redeemed(summer, NOW)
        assert "&lt;0.1%" in staff.get("/").text

    def test_where_nothing_was_mailed_there_is_no_share(self, offer: Make) -> None:
        campaign(offer(), sent=5, launched_at=NOW - timedelta(40))
        figures = dashboard.get_dashboard_figures("UTC")
        assert (figures.emails_sent, figures.conversion_rate) == (0, None)


class TestAttention:
    def test_nothing_is_said_when_all_is_well(self, staff: FlaskClient, offer: Make) -> None:
        campaign(offer(max_redemptions=10, redeemed=1), 1)
        put(CustomerImport(filename="good.csv", media_type="text/csv", status="done"))
        assert 'id="attention"' not in staff.get("/").text

    @pytest.mark.parametrize(
        ("values", "words"),
        [
            ({"status": "paused", "pause_reason": "The relay refuses us"}, "is paused: The relay refuses us."),
            ({"status": "paused", "pause_reason": "paused by ann@example.com"}, "was paused by ann@example.com."),
            (
                {"status": "sending", "trouble": "The relay does not answer."},
                "has a problem: The relay does not answer.",
            ),
        ],
    )
    def test_a_campaign_that_stands_still_and_why(
        self, staff: FlaskClient, offer: Make, values: dict[str, str], words: str
    ) -> None:
        campaign(offer(), 1, **values)
        assert words in section(staff.get("/").text, "attention")

    def test_a_colleague_goes_by_name_unless_two_have_it(
        self, staff: FlaskClient, offer: Make, staff_user: Callable[..., StaffUser]
    ) -> None:
        ann = staff_user("viewer", "ann@example.com")
        campaign(offer(), 1, status="paused", pause_reason="paused by ann@example.com")
        assert f"was paused by {ann.name}." in section(staff.get("/").text, "attention")
        assert f"Paused by {ann.name}" in staff.get("/campaigns").text
        db.session.execute(update(StaffUser).values(name=ann.name))
        db.session.commit()
        assert "was paused by ann@example.com." in section(staff.get("/").text, "attention")

    @pytest.mark.parametrize(
        ("values", "words"),
        [
            ({"max_redemptions": 1000, "redeemed": 900}, "has 100 of 1,000 redemptions left."),
            ({"max_redemptions": 2, "redeemed": 2}, "has reached its limit of 2 redemptions."),
            ({"ends_at": NOW + timedelta(2)}, "ends soon"),
        ],
    )
    def test_an_offer_that_runs_out(self, staff: FlaskClient, offer: Make, values: dict[str, Any], words: str) -> None:
        offer(name="Hot days", **values)
        page = section(staff.get("/").text, "attention")
        assert "Hot days" in page
        assert words in page

    @pytest.mark.parametrize(
        "values",
        [
            {"max_redemptions": 1000, "redeemed": 899},
            {"ends_at": NOW + timedelta(4)},
            {"ends_at": NOW + timedelta(2), "paused_at": NOW},
            {"starts_at": NOW - timedelta(9), "ends_at": NOW - timedelta(1)},
        ],
    )
    def test_an_offer_that_does_not(self, offer: Make, values: dict[str, Any]) -> None:
        offer(**values)
        assert not dashboard.get_attention_list()

    def test_an_import_that_failed(self, staff: FlaskClient, customer: Callable[..., Customer]) -> None:
        put(CustomerImport(filename="<b>bad</b>.csv", media_type="text/csv", status="failed", error="It is a picture."))
        page = section(staff.get("/").text, "attention")
        assert "It is a picture." in page
        assert "<b>bad" not in page


class TestLinks:
    def links(self, client: FlaskClient) -> set[str]:
        content = client.get("/").text.partition('<main id="content"')[2]
        return set(re.findall(r'<a [^>]*?href="(/[^"]*)"', content))

    def test_every_link_of_the_first_steps_leads_somewhere(
        self, staff: FlaskClient, customer: Make, offer: Make
    ) -> None:
        links = self.links(staff)
        customer()
        links |= self.links(staff)
        offer()
        links |= self.links(staff)
        assert {link: staff.get(link).status_code for link in links} == dict.fromkeys(links, 200)

    def test_every_link_of_the_running_page_leads_somewhere(self, staff: FlaskClient, offer: Make) -> None:
        campaign(offer(max_redemptions=1, redeemed=1), 1, status="paused")
        put(CustomerImport(filename="bad.csv", media_type="text/csv", status="failed", error="It is a picture."))
        links = self.links(staff)
        assert len(links) == 7
        assert {link: staff.get(link).status_code for link in links} == dict.fromkeys(links, 200)


class TestWhileMailsGoOut:
    def test_the_figures_renew_themselves_until_the_mails_are_through(self, staff: FlaskClient, offer: Make) -> None:
        row = campaign(offer(), 3, status="sending")
        going = staff.get("/now").text
        row.status = "done"
        db.session.commit()
        through = staff.get("/now").text
        assert 'hx-get="/now"' in going
        assert "hx-get" not in through
        assert going.lstrip().startswith('<div id="now"')

    def test_uncertain_mails_are_to_decide(self, staff: FlaskClient, offer: Make) -> None:
        row = campaign(offer(), 3)
        put(MailIssue(campaign_id=row.id, customer_id=1, state="uncertain"))
        page = section(staff.get("/").text, "attention")
        assert "has 1 uncertain delivery to resolve." in page
        assert f'href="/campaigns/{row.id}/recipients?state=uncertain"' in page
