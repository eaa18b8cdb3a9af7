"""The launch page: what it shows, what its form is filled with, and where it leads."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from flask.testing import FlaskClient
from sqlalchemy import select, text, update

from tests.support.campaigns import create_customers
from webapp.accounts.models import AuditEntry, StaffUser
from webapp.campaigns.content.placeholders import EmailContent
from webapp.campaigns.drafts import actions as draft_actions
from webapp.campaigns.launch import actions as launch_actions
from webapp.campaigns.launch import preparation, transitions
from webapp.campaigns.models import Campaign
from webapp.core.extensions import db
from webapp.customers.models import Audience
from webapp.offers.models import Offer

HTMX = {"HX-Request": "true"}


def inputs(page: str) -> dict[str, str]:
    """Return the values of the text fields and of the checked radio buttons of a page by name."""
    values = {}
    for tag in re.findall(r"<input[^>]*>", page):
        attributes = dict(re.findall(r'(\w+)="([^"]*)"', tag))
        if "name" in attributes and (attributes.get("type") != "radio" or " checked" in tag):
            values[attributes["name"]] = attributes.get("value", "")
    return values


@pytest.mark.parametrize("path", ["launch", "mail"])
def test_an_offer_without_an_announcement_leads_to_the_editor(
    staff: FlaskClient, make_offer: Callable[..., Offer], path: str
) -> None:
    offer = make_offer()
    page = staff.get(f"/offers/{offer.id}/{path}", follow_redirects=True)
    assert (page.status_code, page.request.path) == (200, f"/offers/{offer.id}/mail")


def test_the_form_of_a_scheduled_campaign_has_its_time_and_recipients(
    staff: FlaskClient, make_offer: Callable[..., Offer]
) -> None:
    create_customers(3)
    offer = make_offer(time_zone="America/New_York", ends_at=None)
    cancelled = launch_actions.launch_announcement(offer.id, "tests").campaign
    preparation.prepare_campaign(cancelled.id)
    db.session.execute(text("update batch set window_start = 2"))
    transitions.cancel_campaign(cancelled.id, "tests")
    draft = draft_actions.save_offer_draft(offer.id, EmailContent(), "resend", "tests")
    path = f"/campaigns/{draft.id}/launch"
    before = staff.get(path).text
    # The second of two equal local times.
    launch_actions.schedule_campaign(draft.id, datetime(2150, 11, 1, 6, 30, tzinfo=UTC), "tests", True)

    page = staff.get(path).text

    names = ("when", "seen", "at", "at_time", "at_fold", "to_all")
    assert [inputs(before).get(name) for name in names] == ["now", "draft", "", "", None, "no"]
    assert [inputs(page).get(name) for name in names] == ["later", "scheduled", "2150-11-01", "01:30", "1", "yes"]
    assert "<strong>1 customer</strong>" in before
    assert "<strong>3 customers</strong>" in page


def test_the_launch_page_names_the_audience_of_the_offer(staff: FlaskClient, make_offer: Callable[..., Offer]) -> None:
    create_customers(1)
    db.session.add(Audience(name="Very important"))
    db.session.commit()
    for code, audience_id, name in (("ALL", None, "All customers"), ("VIP", 1, "Very important")):
        offer = make_offer(code, audience_id=audience_id)
        draft = draft_actions.save_offer_draft(offer.id, EmailContent(), "resend", "tests")
        page = staff.get(f"/campaigns/{draft.id}/launch").text
        assert (name in page, "Very important" in page) == (True, code == "VIP")


@pytest.mark.parametrize(
    ("own_zone", "times"),
    [
        ("Europe/Paris", "That is 10 Jan 2150, 08:00 UTC."),
        ("UTC", "That is 10 Jan 2150, 08:00 UTC for you."),
        ("Asia/Tokyo", "That is 10 Jan 2150, 17:00 JST for you, 10 Jan 2150, 08:00 UTC."),
        ("Africa/Abidjan", "That is 10 Jan 2150, 08:00 GMT for you."),
    ],
)
def test_a_launch_time_is_shown_once_for_each_offset(
    staff: FlaskClient, make_offer: Callable[..., Offer], own_zone: str, times: str
) -> None:
    offer = make_offer(time_zone="Europe/Berlin", ends_at=None)
    db.session.execute(update(StaffUser).values(time_zone=own_zone))
    db.session.commit()
    draft = draft_actions.save_offer_draft(offer.id, EmailContent(), "resend", "tests")
    form = {"when": "later", "at": "2150-01-10", "at_time": "09:00"}

    page = staff.post(f"/campaigns/{draft.id}/launch", data=form, follow_redirects=True).text

    assert "The campaign will be launched automatically on 10 Jan 2150, 09:00 CET." in page
    assert times in " ".join(page.split())


def test_every_step_is_recorded_with_the_user(staff: FlaskClient, make_offer: Callable[..., Offer]) -> None:
    create_customers(1)
    offer = make_offer(ends_at=None)
    staff.post(f"/offers/{offer.id}/mail", data={"subject": "s", "text": "", "html": "", "uncertain_policy": "hold"})
    later = {"when": "later", "at": "2150-01-10", "at_time": "09:00"}
    for path, form in (
        ("launch", later), ("draft", {}), ("launch", {"when": "now"}), ("pause", {}), ("resume", {}), ("cancel", {})
    ):  # fmt: skip
        staff.post(f"/campaigns/1/{path}", data=form)
    staff.post(f"/offers/{make_offer('WINTER').id}/launch")

    entries = db.session.execute(select(AuditEntry.action, AuditEntry.actor).order_by(AuditEntry.id)).all()

    actions = ["scheduled", "taken_back", "launched", "paused", "resumed", "cancelled", "launched"]
    expected = ["mail.saved", *(f"campaign.{action}" for action in actions)]
    assert entries == [(action, "manager@example.com") for action in expected]
    assert {campaign.launched_by for campaign in db.session.scalars(select(Campaign))} == {"manager@example.com"}


@pytest.mark.parametrize("headers", [{}, HTMX])
@pytest.mark.parametrize(
    "path",
    [f"/campaigns/9/{action}" for action in ("launch", "draft", "pause", "resume", "cancel", "send-again", "leave")],
)
def test_steps_of_an_unknown_campaign_are_not_found(staff: FlaskClient, path: str, headers: dict[str, str]) -> None:
    assert staff.post(path, headers=headers).status_code == 404


def test_the_page_after_a_refused_launch_shows_the_reason_and_keeps_the_draft(
    staff: FlaskClient, make_offer: Callable[..., Offer]
) -> None:
    create_customers(1)
    offer = make_offer(paused_at=datetime.now(UTC) - timedelta(hours=1))
    draft = draft_actions.save_offer_draft(offer.id, EmailContent(), "resend", "tests")
    response = staff.post(f"/campaigns/{draft.id}/launch", data={"when": "now", "seen": "draft"})
    assert (response.status_code, inputs(response.text)["seen"]) == (409, "draft")
    assert "This offer is paused, so its code would not work. Resume the offer first." in response.text
    # Not twice.
    assert "its code does not work now" not in response.text
    assert "its code does not work now" in staff.get(f"/campaigns/{draft.id}/launch").text


NO_CUSTOMERS = "There are no customers in this audience yet."
ALL_SUPPRESSED = "All addresses in this audience are suppressed."
ALL_REDEEMED = "All customers who can get emails have redeemed, so no one needs a reminder."


@pytest.mark.parametrize(
    ("kind", "statement", "message"),
    [
        ("announcement", "delete from customer", NO_CUSTOMERS),
        ("announcement", "insert into suppression (email, reason, source) select email, 'bounced', '' from customer",
         ALL_SUPPRESSED),
        ("reminder", "insert into redemption (offer_id, customer_id, channel) select 1, id, 'form' from customer",
         ALL_REDEEMED),
        ("reminder", "select 1", None),
    ],
)  # fmt: skip
def test_the_launch_page_says_why_there_are_no_recipients(
    staff: FlaskClient, make_offer: Callable[..., Offer], kind: str, statement: str, message: str | None
) -> None:
    create_customers(2)
    db.session.execute(text(statement))
    draft = Campaign(offer_id=make_offer().id, kind=kind, subject="s", text="t")
    db.session.add(draft)
    db.session.commit()
    page = staff.get(f"/campaigns/{draft.id}/launch").text
    assert [shown for shown in (NO_CUSTOMERS, ALL_SUPPRESSED, ALL_REDEEMED) if shown in page] == [message] * bool(
        message
    )
    assert ("Launch to" in page) == (message is None)
    heading = "Launch reminder" if kind == "reminder" else "Launch announcement"
    assert f"<title>{heading}: Summer" in " ".join(page.split()).replace("> ", ">")


def test_the_campaign_of_an_ended_offer_cannot_be_launched_from_its_page(
    staff: FlaskClient, make_offer: Callable[..., Offer]
) -> None:
    create_customers(1)
    draft = draft_actions.save_offer_draft(make_offer().id, EmailContent(), "resend", "tests")
    assert "Launch to 1 customer" in staff.get(f"/campaigns/{draft.id}/launch").text
    db.session.execute(text("update offer set ends_at = now() - interval '1 minute'"))
    db.session.commit()
    page = staff.get(f"/campaigns/{draft.id}/launch").text
    assert ("Launch to" in page, "This offer has ended" in page) == (False, True)
