"""The progress of a campaign in words: rate, forecast, warnings and what staff can do."""

from __future__ import annotations

import re
from collections.abc import Callable
from html import unescape

import pytest
from flask.testing import FlaskClient
from sqlalchemy import text

from tests.support.campaigns import LaunchCampaign, create_customers
from webapp.campaigns.launch import transitions
from webapp.campaigns.models import Campaign, MailIssue
from webapp.campaigns.sending import auto_pause
from webapp.core.extensions import db


@pytest.fixture
def campaign(launch_campaign: LaunchCampaign) -> Campaign:
    """A campaign to one customer that is being sent."""
    create_customers(1)
    return launch_campaign()


def change(campaign: Campaign, assignments: str, **values: object) -> None:
    db.session.execute(text(f"update campaign set {assignments} where id = :id"), {"id": campaign.id, **values})
    db.session.commit()


def read_progress(client: FlaskClient, campaign: Campaign) -> str:
    """Return the text of the progress without tags and repeated white space."""
    page = client.get(f"/campaigns/{campaign.id}/progress").text
    return " ".join(unescape(re.sub("<[^>]*>", " ", page)).split())


def finish(campaign: Campaign, sent: int, seconds: int = 1) -> None:
    db.session.execute(text("update batch set status = 'done', window_start = 1, window_end = 1"))
    change(
        campaign,
        "status = 'done', total = :sent, sent_in_batches = :sent, finished_at = '2026-05-01 12:00+00', "
        "sending_since = timestamptz '2026-05-01 12:00+00' - make_interval(secs => :seconds)",
        sent=sent,
        seconds=seconds,
    )


@pytest.mark.parametrize(
    ("sent", "seconds", "words"),
    [
        (3000, 100, "1,800 emails per minute."),
        (60, 2400, "2 emails per minute."),
        (59, 2400, "88 emails per hour."),
        (1, 3600, "1 email per hour."),
    ],
)
def test_a_finished_campaign_has_an_average_rate_and_a_time(
    staff: FlaskClient, campaign: Campaign, sent: int, seconds: int, words: str
) -> None:
    finish(campaign, sent, seconds)
    assert re.search(rf"Average rate: {words} Finished [^.]*2026", read_progress(staff, campaign))


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (1, "1 second"),
        (89, "89 seconds"),
        (90, "2 minutes"),
        (5399, "90 minutes"),
        (5400, "2 hours"),
        (172799, "48 hours"),
        (172800, "2 days"),
    ],
)
def test_a_campaign_that_is_being_sent_has_a_forecast(
    staff: FlaskClient, campaign: Campaign, seconds: int, words: str
) -> None:
    db.session.execute(text("update batch set status = 'done', sent = 50"))
    # Sending starts in the future, which counts as a second ago, so that the rate is exactly 50 emails per second.
    change(campaign, "sending_since = now() + interval '1 hour', total = 50 + 50 * :seconds", seconds=seconds)
    assert f"Current rate: 3,000 emails per minute. About {words} left." in read_progress(staff, campaign)


def test_a_cancelled_campaign_shows_when_it_was_cancelled(staff: FlaskClient, campaign: Campaign) -> None:
    transitions.cancel_campaign(campaign.id, "tests")
    change(campaign, "finished_at = '2026-05-01 12:00+00'")
    page = read_progress(staff, campaign)
    assert re.search(r"Cancelled [^.]*2026", page)
    assert "Finished" not in page


@pytest.mark.parametrize(
    ("total", "words"),
    [
        (1, "All emails have been attempted. Deferred emails are retried for up to two days."),
        (2, "Deferred emails are retried for up to two days."),
    ],
)
def test_deferred_emails_are_announced_as_retried(
    staff: FlaskClient, campaign: Campaign, total: int, words: str
) -> None:
    db.session.add(MailIssue(campaign_id=campaign.id, customer_id=1, state="deferred"))
    change(campaign, "total = :total", total=total)
    page = read_progress(staff, campaign)
    assert words in page
    assert ("All emails have been attempted." in page) is (total == 1)
    assert "Deferred 1 retried automatically" in page


def test_a_warning_says_for_how_long_nothing_has_been_sent(staff: FlaskClient, campaign: Campaign) -> None:
    auto_pause.set_delivery_warning("The relay is down.")
    assert "The relay is down." in read_progress(staff, campaign)
    assert "Nothing has been sent" not in read_progress(staff, campaign)
    change(campaign, "sending_since = now() - interval '330 seconds', launched_at = now() - interval '1 hour'")
    page = read_progress(staff, campaign)
    assert re.search(r"Nothing has been sent for \d minutes: The relay is down\.", page)
    assert "whether a worker is running" not in page


def test_a_paused_campaign_says_why_and_what_follows(staff: FlaskClient, campaign: Campaign) -> None:
    auto_pause.set_delivery_warning("The relay is down.")
    auto_pause.pause_automatically(campaign.id, "spam")
    page = read_progress(staff, campaign)
    assert "This campaign is paused. Spam. The remaining emails are sent when it is resumed." in page
    assert "The relay is down." not in page
    assert "Resume" in page


def test_a_campaign_that_is_being_prepared_counts_its_recipients(
    staff: FlaskClient, launch_campaign: LaunchCampaign
) -> None:
    create_customers(1)
    campaign = launch_campaign(prepare=False)
    change(campaign, "total = 1234")
    assert "Selecting the recipients: 1,234 so far." in read_progress(staff, campaign)


def test_the_cancel_dialog_names_the_recipients_who_get_no_email(staff: FlaskClient, campaign: Campaign) -> None:
    question = "Cancel this campaign? About 1 recipient has not received the email and will not receive it"
    assert question in read_progress(staff, campaign)
    db.session.add(MailIssue(campaign_id=campaign.id, customer_id=1, state="failed"))
    db.session.commit()
    assert "Cancel this campaign? Emails already sent are not affected." in read_progress(staff, campaign)


def test_failed_emails_of_a_campaign_at_rest_can_be_resent(
    sign_in: Callable[..., FlaskClient], campaign: Campaign
) -> None:
    db.session.add(MailIssue(campaign_id=campaign.id, customer_id=1, state="failed"))
    db.session.commit()
    manager, question = sign_in("manager"), "Resend 1 failed email? Suppressed addresses are skipped."
    assert question not in read_progress(manager, campaign)
    finish(campaign, 0)
    assert question in read_progress(manager, campaign)
    viewer = sign_in("viewer")
    assert question not in read_progress(viewer, campaign)
    assert "Failed 1" in read_progress(viewer, campaign)


def test_only_a_manager_is_asked_to_resolve_an_uncertain_email(
    sign_in: Callable[..., FlaskClient], campaign: Campaign
) -> None:
    db.session.add(MailIssue(campaign_id=campaign.id, customer_id=1, state="uncertain"))
    db.session.commit()
    finish(campaign, 0)
    words = "1 email is uncertain. It is unknown whether it was sent. Check and resolve it"
    assert words in read_progress(sign_in("manager"), campaign)
    assert words not in read_progress(sign_in("viewer"), campaign)
