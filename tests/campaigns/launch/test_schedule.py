"""Mailings that wait for their time, and every way a campaign goes from one state to another."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import text

from tests.support import live_server
from tests.support.campaigns import create_customers
from tests.support.live_server import wait_until
from tests.support.smtp_relay import Relay
from tests.support.sql_statements import statements
from webapp.campaigns import queries as campaign_queries
from webapp.campaigns.content.placeholders import EmailContent
from webapp.campaigns.drafts import actions as draft_actions
from webapp.campaigns.launch import actions as launch_actions
from webapp.campaigns.launch import cancellation, preparation, transitions
from webapp.campaigns.models import Campaign, decode_gaps
from webapp.campaigns.sending import batches, sender
from webapp.core import task_queue
from webapp.core.errors import DomainError, InvalidInput
from webapp.core.extensions import db, huey
from webapp.core.settings import Settings
from webapp.customers.models import Audience
from webapp.offers.models import Offer

SOON = datetime.now(UTC) + timedelta(hours=5)


@pytest.fixture
def draft(app: Flask, offer: Callable[..., Offer]) -> Campaign:
    """A draft to three customers."""
    create_customers(3)
    return draft_actions.save_offer_draft(offer().id, EmailContent("Hello", "Text"), "resend", "tests")


def fresh(campaign: Campaign) -> Campaign:
    db.session.rollback()
    db.session.refresh(campaign)
    return campaign


def time_comes(campaign: Campaign, ago: str = "1 second") -> None:
    db.session.execute(
        text("update campaign set scheduled_at = now() - cast(:ago as interval) where id = :id"),
        {"ago": ago, "id": campaign.id},
    )
    db.session.commit()


def wrong(campaign: Campaign, at: datetime) -> tuple[str, str]:
    """At which field a time is refused, and why."""
    with pytest.raises(InvalidInput) as caught:
        launch_actions.schedule_campaign(campaign.id, at, "mia")
    return caught.value.errors[0].field, caught.value.errors[0].key


# --- a time -----------------------------------------------------------------------------------------


def test_nothing_starts_before_its_time_and_all_of_it_then(draft: Campaign, relay: Relay) -> None:
    launch_actions.schedule_campaign(draft.id, SOON, "mia")
    task_queue.run("campaigns.sweep")
    assert (fresh(draft).status, draft.launched_at) == ("scheduled", None)
    time_comes(draft)
    task_queue.run("campaigns.start")
    assert (fresh(draft).status, draft.launched_by) == ("preparing", "mia")
    preparation.prepare_campaign(draft.id)
    sender.send_pending_emails()
    assert len(relay.recipients) == 3


def test_a_start_that_was_missed_is_made_up_at_once(draft: Campaign) -> None:
    launch_actions.schedule_campaign(draft.id, SOON, "mia")
    time_comes(draft, ago="3 days")
    task_queue.run("campaigns.sweep")
    assert fresh(draft).status == "preparing"


def test_two_workers_start_it_once(app: Flask, draft: Campaign) -> None:
    launch_actions.schedule_campaign(draft.id, SOON, "mia")
    time_comes(draft)
    found: list[list[int]] = []

    def start() -> None:
        with app.app_context():
            found.append(launch_actions.start_due_campaigns())

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [each for started in found for each in started] == [draft.id]


def test_a_real_worker_starts_it_in_the_second_it_is_due(
    app: Flask, draft: Campaign, relay: Relay, with_settings: Callable[..., Settings]
) -> None:
    settings = with_settings(mail_port=relay.port)
    at = datetime.now(UTC) + timedelta(seconds=4)
    launch_actions.schedule_campaign(draft.id, at, "mia")
    with live_server.worker(settings):
        wait_until(lambda: fresh(draft).status == "done")
    assert draft.launched_at is not None
    assert draft.launched_at >= at
    assert len(relay.recipients) == 3


@pytest.mark.parametrize(
    ("at", "key"),
    [
        (datetime.now(UTC) - timedelta(seconds=1), "time_past"),
        (datetime(9999, 12, 31, tzinfo=UTC), "time_out_of_range"),
        (datetime.now(UTC) + timedelta(days=31), "time_after_end"),
    ],
)
def test_a_time_that_can_not_be_is_refused_at_its_field(draft: Campaign, at: datetime, key: str) -> None:
    assert wrong(draft, at) == ("at", key)
    assert fresh(draft).status == "draft"


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        ("paused_at = now()", "This offer is paused"),
        ("ends_at = now() - interval '1 hour'", "This offer has ended"),
        ("max_redemptions = 1, redeemed = 1", "This offer has reached its limit"),
    ],
)
def test_what_can_not_start_at_its_time_is_paused_with_the_reason_until_it_is_mended(
    draft: Campaign, edit: str, reason: str
) -> None:
    launch_actions.schedule_campaign(draft.id, SOON, "mia")
    db.session.execute(text(f"update offer set {edit}"))
    time_comes(draft)
    assert launch_actions.start_due_campaigns() == []
    assert (fresh(draft).status, reason in (draft.pause_reason or "")) == ("paused", True)
    assert [campaign.id for campaign in campaign_queries.list_campaigns_needing_attention()] == [draft.id]
    with pytest.raises(DomainError, match=reason):
        transitions.resume_campaign(draft.id, "tom")
    assert fresh(draft).status == "paused"
    db.session.execute(text("update offer set paused_at = null, ends_at = null, max_redemptions = null, redeemed = 0"))
    db.session.commit()
    resumed = transitions.resume_campaign(draft.id, "tom")
    assert (resumed.status, resumed.pause_reason, resumed.launched_at is None) == ("preparing", None, False)


def test_an_audience_that_is_empty_at_its_time_pauses_it(draft: Campaign) -> None:
    launch_actions.schedule_campaign(draft.id, SOON, "mia")
    db.session.execute(text("delete from customer"))
    time_comes(draft)
    launch_actions.start_due_campaigns()
    assert (fresh(draft).status, "There are no recipients" in (draft.pause_reason or "")) == ("paused", True)
    create_customers(1)
    assert transitions.resume_campaign(draft.id, "tom").status == "preparing"


def test_the_offer_is_free_until_the_start_and_mailed_as_it_stands_then(draft: Campaign) -> None:
    launch_actions.schedule_campaign(draft.id, SOON, "mia")
    offer = db.session.get_one(Offer, draft.offer_id)
    assert offer.frozen_at is None
    db.session.execute(text("insert into audience (name) values ('One')"))
    db.session.execute(text("insert into audience_member select 1, min(id) from customer"))
    db.session.execute(text("update offer set audience_id = 1"))
    time_comes(draft)
    launch_actions.start_due_campaigns()
    preparation.prepare_campaign(draft.id)
    db.session.refresh(offer)
    assert offer.frozen_at is not None
    assert fresh(draft).total == 1


def test_the_time_can_be_changed_and_saying_it_again_changes_nothing(draft: Campaign) -> None:
    assert launch_actions.schedule_campaign(draft.id, SOON, "mia").changed
    assert not launch_actions.schedule_campaign(draft.id, SOON, "mia").changed
    later = launch_actions.schedule_campaign(draft.id, SOON + timedelta(hours=1), "tom")
    assert (later.changed, later.campaign.scheduled_at) == (True, SOON + timedelta(hours=1))


def test_a_time_put_off_at_the_last_moment_does_not_start(draft: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    launch_actions.schedule_campaign(draft.id, SOON, "mia")
    time_comes(draft)
    due = launch_actions.start_due_campaigns.__globals__["launch_queries"].list_due_campaign_ids()
    launch_actions.schedule_campaign(draft.id, SOON, "mia")
    monkeypatch.setattr("webapp.campaigns.launch.queries.list_due_campaign_ids", lambda: due)
    assert launch_actions.start_due_campaigns() == []
    assert fresh(draft).status == "scheduled"


def test_the_bell_for_a_near_start_is_rung_and_for_a_far_one_not(draft: Campaign) -> None:
    launch_actions.schedule_campaign(draft.id, SOON, "mia")
    assert huey.pending() == []
    launch_actions.schedule_campaign(draft.id, datetime.now(UTC) + timedelta(seconds=50), "mia")
    assert [task.eta is not None for task in huey.pending()] == [True]


# --- every state ------------------------------------------------------------------------------------

STATES = ("draft", "scheduled", "preparing", "sending", "paused", "paused before its start", "cancelled", "done")
DEEDS: dict[str, Callable[[int], object]] = {
    "launch": lambda i: launch_actions.launch_campaign(i, "mia"),
    "schedule": lambda i: launch_actions.schedule_campaign(i, SOON, "mia"),
    "take back": lambda i: launch_actions.unschedule_campaign(i, "mia"),
    "pause": lambda i: transitions.pause_campaign(i, "mia"),
    "resume": lambda i: transitions.resume_campaign(i, "mia"),
    "cancel": lambda i: transitions.cancel_campaign(i, "mia"),
}
# What each deed makes of each state; None where it is refused. The table of docs/campaigns.md.
TABLE: dict[str, tuple[str | None, ...]] = {
    "launch": ("preparing", "preparing", "preparing", "sending", "paused", "paused", None, "done"),
    "schedule": ("scheduled", "scheduled", None, None, None, None, None, None),
    "take back": ("draft", "draft", None, None, None, "draft", None, None),
    "pause": (None, None, "paused", "paused", "paused", "paused", None, None),
    "resume": (None, None, "preparing", "sending", "sending", "preparing", None, None),
    "cancel": (None, "cancelled", "cancelled", "cancelled", "cancelled", "cancelled", "cancelled", None),
}


def bring_to(state: str, campaign: Campaign) -> None:
    """The campaign in a state, by the way that leads there."""
    if state == "draft":
        return
    if state.startswith(("scheduled", "paused before")):
        launch_actions.schedule_campaign(campaign.id, SOON, "mia")
    if state == "paused before its start":
        db.session.execute(text("update offer set paused_at = now()"))
        time_comes(campaign)
        launch_actions.start_due_campaigns()
        db.session.execute(text("update offer set paused_at = null"))
        db.session.commit()
    if state in ("preparing", "sending", "paused", "cancelled", "done"):
        launch_actions.launch_campaign(campaign.id, "mia")
    if state in ("sending", "paused", "cancelled", "done"):
        preparation.prepare_campaign(campaign.id)
    if state == "paused":
        transitions.pause_campaign(campaign.id, "mia")
    if state == "cancelled":
        transitions.cancel_campaign(campaign.id, "mia")
    if state == "done":
        sender.send_pending_emails()


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("deed", DEEDS)
def test_each_deed_leads_where_the_table_says_and_a_second_time_nowhere_else(
    draft: Campaign, relay: Relay, state: str, deed: str
) -> None:
    bring_to(state, draft)
    before = fresh(draft).status
    to = TABLE[deed][STATES.index(state)]
    for _ in range(2):
        if to is None:
            with pytest.raises(DomainError) as caught:
                DEEDS[deed](draft.id)
            assert caught.value.key == "conflict"
            assert re.match(r"This campaign (is|was|has) ", caught.value.message)
        else:
            DEEDS[deed](draft.id)
        assert fresh(draft).status == (to or before)


# --- cancelling -------------------------------------------------------------------------------------


def test_cancelling_runs_the_same_statements_for_any_size(app: Flask, offer: Callable[..., Offer]) -> None:
    def cancelled(code: str) -> list[str]:
        campaign = launch_actions.launch_announcement(offer(code).id, "tests").campaign
        preparation.prepare_campaign(campaign.id)
        with statements() as seen:
            transitions.cancel_campaign(campaign.id, "mia")
        return [statement for statement, _ in seen]

    create_customers(3)
    few = cancelled("FEW")
    create_customers(2600, first=10)
    assert cancelled("MANY") == few
    assert not any(" batch" in statement or "mail_issue" in statement for statement in few)


def test_what_is_left_of_a_cancelled_mailing_is_closed_in_portions(
    app: Flask, offer: Callable[..., Offer], relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_customers(1600)
    relay.behaviour.rcpt["c1@example.com"] = relay.behaviour.rcpt["c2@example.com"] = "450 later"
    campaign = launch_actions.launch_announcement(offer().id, "tests").campaign
    preparation.prepare_campaign(campaign.id)
    db.session.execute(text("update batch set not_before = now() + interval '1 hour' where seq > 0"))
    db.session.commit()
    sender.send_pending_emails()
    transitions.cancel_campaign(campaign.id, "mia")
    told = campaign_queries.get_campaign_stats(campaign.id)
    monkeypatch.setattr(cancellation, "CLEANUP_CHUNK_SIZE", 1)
    cancellation.clean_up_cancelled_campaigns()
    assert db.session.execute(text("select status, count(*) from batch group by 1 order by 1")).all() == [
        ("cancelled", 3),
        ("done", 1),
    ]
    assert db.session.execute(text("select state, next_at from mail_issue")).all() == [("skipped", None)] * 2
    assert fresh(campaign).sent_in_batches == 498
    after = campaign_queries.get_campaign_stats(campaign.id)
    assert (after.sent, after.skipped, after.deferred) == (told.sent, told.skipped, told.deferred) == (498, 2, 0)


def test_a_finished_mailing_keeps_what_its_batches_sent(draft: Campaign, relay: Relay) -> None:
    bring_to("done", draft)
    assert fresh(draft).sent_in_batches == 3
    db.session.execute(text("update batch set sent = 0"))
    assert campaign_queries.get_campaign_stats(draft.id).sent == 3


# --- once more, after a cancellation ------------------------------------------------------------------


@pytest.fixture
def half_sent(app: Flask, offer: Callable[..., Offer], relay: Relay) -> tuple[Offer, list[int]]:
    """An offer whose first mailing was cancelled after the first of two batches; c1 failed, c2's is uncertain."""
    ids = create_customers(700)
    relay.behaviour.rcpt["c1@example.com"] = "550 no"
    row = offer()
    campaign = launch_actions.launch_announcement(row.id, "tests").campaign
    preparation.prepare_campaign(campaign.id)
    db.session.execute(text("update batch set not_before = now() + interval '1 hour' where seq > 0"))
    db.session.commit()
    sender.send_pending_emails()
    db.session.execute(
        text("insert into mail_issue (campaign_id, customer_id, state) values (:c, :i, 'uncertain')"),
        {"c": campaign.id, "i": ids[2]},
    )
    db.session.commit()
    transitions.cancel_campaign(campaign.id, "mia")
    return row, ids


def again(offer_id: int, policy: str = "resend", to_all: bool | None = None) -> list[int]:
    """Whom a new mailing goes to."""
    campaign = draft_actions.save_offer_draft(offer_id, EmailContent("Anew"), policy, "mia")
    launch_actions.launch_campaign(campaign.id, "mia", to_all)
    preparation.prepare_campaign(campaign.id)
    rows = db.session.execute(text("select gaps from batch where campaign_id = :id order by seq"), {"id": campaign.id})
    return [customer_id for row in rows for customer_id in decode_gaps(row.gaps)]


def test_a_new_mailing_goes_to_those_who_have_not_got_the_cancelled_one(half_sent: tuple[Offer, list[int]]) -> None:
    offer, ids = half_sent
    assert again(offer.id) == [ids[1], ids[2], *ids[500:]]


def test_who_may_have_got_it_is_left_out_where_such_mails_are_held(half_sent: tuple[Offer, list[int]]) -> None:
    offer, ids = half_sent
    assert again(offer.id, "hold") == [ids[1], *ids[500:]]


def test_a_new_mailing_goes_to_everybody_where_staff_say_so(half_sent: tuple[Offer, list[int]]) -> None:
    offer, ids = half_sent
    assert again(offer.id, to_all=True) == ids


def test_a_new_mailing_waits_until_the_cancelled_one_is_let_go(app: Flask, offer: Callable[..., Offer]) -> None:
    create_customers(3)
    row = offer()
    first = launch_actions.launch_announcement(row.id, "tests").campaign
    preparation.prepare_campaign(first.id)
    claim = batches.claim_batch("a worker")
    assert claim is not None
    transitions.cancel_campaign(first.id, "mia")
    assert again(row.id) == []
    batches.release_batch(claim)
    second = campaign_queries.find_announcement(row.id)
    assert second is not None
    preparation.prepare_campaign(second.id)
    assert fresh(second).total == 3


# --- the page -----------------------------------------------------------------------------------------


def launch(staff: FlaskClient, campaign: Campaign, **typed: str) -> Any:
    return staff.post(f"/campaigns/{campaign.id}/launch", data={"when": "later", **typed}, follow_redirects=True)


def test_a_time_is_that_of_clocks_in_the_offers_zone(staff: FlaskClient, draft: Campaign) -> None:
    db.session.execute(text("update offer set time_zone = 'America/New_York', ends_at = null"))
    db.session.commit()
    answer = launch(staff, draft, at="2199-01-10", at_time="09:00")
    assert "10 Jan 2199, 09:00 EST" in answer.text
    assert "10 Jan 2199, 14:00 UTC for you" in answer.text
    assert fresh(draft).scheduled_at == datetime(2199, 1, 10, 14, tzinfo=UTC)
    assert "Starts on 10 Jan 2199" in staff.get("/campaigns").text
    assert "Starts on 10 Jan 2199" in staff.get(f"/offers/{draft.offer_id}").text


@pytest.mark.parametrize(
    ("typed", "field", "words"),
    [
        ({"at": "2031-02-31", "at_time": "09:00"}, "at", "Not a valid date value."),
        ({"at": "2031-02-28", "at_time": "25:00"}, "at_time", "Not a valid time value."),
        ({"at": "2031-02-28", "at_time": ""}, "at_time", "Enter the time at which the campaign starts"),
        ({"at": "", "at_time": ""}, "at", "Choose the day on which the campaign starts."),
        ({"at": "9999-12-31", "at_time": "23:59"}, "at", "Choose a year from 2000 to 2199."),
        ({"at": "2020-01-01", "at_time": "09:00"}, "at", "This time is in the past."),
        ({"at": "2031-03-30", "at_time": "02:30"}, "at", "does not exist on that day in Europe/Berlin"),
        ({"at": "2031-10-26", "at_time": "02:30"}, "at", "occurs twice"),
        ({"at": "2032-01-01", "at_time": "00:00"}, "at", "The offer will have ended"),
    ],
)
def test_a_time_that_can_not_be_is_said_at_the_field_and_stays_typed(
    staff: FlaskClient, draft: Campaign, typed: dict[str, str], field: str, words: str
) -> None:
    db.session.execute(text("update offer set time_zone = 'Europe/Berlin', ends_at = '2031-12-31 00:00+01'"))
    db.session.commit()
    answer = launch(staff, draft, **typed)
    assert answer.status_code == 422
    assert re.search(rf'id="{field}-error"[^§]*?{re.escape(words)}', answer.text)
    assert f'value="{typed["at"]}"' in answer.text
    assert fresh(draft).status == "draft"


def test_which_of_two_times_is_meant_is_asked_and_taken(staff: FlaskClient, draft: Campaign) -> None:
    db.session.execute(text("update offer set time_zone = 'Europe/Berlin', ends_at = null"))
    db.session.commit()
    assert 'name="at_fold"' in launch(staff, draft, at="2031-10-26", at_time="02:30").text
    launch(staff, draft, at="2031-10-26", at_time="02:30", at_fold="1")
    assert fresh(draft).scheduled_at == datetime(2031, 10, 26, 1, 30, tzinfo=UTC)


def test_a_launch_that_says_neither_now_nor_when_launches_nothing(staff: FlaskClient, draft: Campaign) -> None:
    assert staff.post(f"/campaigns/{draft.id}/launch", data={"to_all": "no"}).status_code == 422
    assert fresh(draft).status == "draft"


def test_a_button_of_an_old_page_says_how_it_stands_now(staff: FlaskClient, draft: Campaign) -> None:
    launch_actions.schedule_campaign(draft.id, SOON, "tom")
    launch_actions.launch_campaign(draft.id, "tom")
    for page, words in (
        ("draft", "is already in progress. It can&#39;t be returned to draft."),
        ("launch", "is already in progress. It can&#39;t be scheduled."),
    ):
        typed = {"when": "later", "at": "2031-01-01", "at_time": "09:00"}
        answer = staff.post(f"/campaigns/{draft.id}/{page}", data=typed, follow_redirects=True)
        assert (answer.request.path, words in answer.text) == (f"/campaigns/{draft.id}", True)
    transitions.cancel_campaign(draft.id, "tom")
    piece = staff.post(f"/campaigns/{draft.id}/pause", headers={"HX-Request": "true"}).text
    assert "This campaign has been cancelled. It can&#39;t be paused." in piece
    assert "Cancelled" in piece


def test_an_old_page_does_not_put_back_on_schedule_what_was_taken_back(staff: FlaskClient, draft: Campaign) -> None:
    launch_actions.schedule_campaign(draft.id, SOON, "mia")
    stood = re.findall(r'name="seen"[^>]*value="(\w+)"', staff.get(f"/campaigns/{draft.id}/launch").text)
    launch_actions.unschedule_campaign(draft.id, "mia")
    for sent in ({"when": "later", "at": "2030-01-01", "at_time": "9:00"}, {"when": "now"}):
        answer = staff.post(f"/campaigns/{draft.id}/launch", data={**sent, "seen": stood[0]})
        assert (answer.status_code, "has been unscheduled since" in answer.text) == (409, True)
        assert fresh(draft).status == "draft"
    assert 'name="seen" type="hidden" value="draft"' in answer.text


def test_the_page_of_a_mailing_that_waits_goes_to_its_progress_when_it_starts(
    staff: FlaskClient, draft: Campaign
) -> None:
    launch_actions.schedule_campaign(draft.id, SOON, "mia")
    asked = re.findall(r'hx-get="([^"]+)"\s+hx-trigger="every', staff.get(f"/campaigns/{draft.id}/launch").text)[0]
    waiting = staff.get(asked)
    assert (waiting.status_code, "HX-Redirect" in waiting.headers) == (204, False)
    launch_actions.launch_campaign(draft.id, "mia")
    assert staff.get(asked).headers["HX-Redirect"] == f"/campaigns/{draft.id}"


def test_a_mailing_that_never_started_shows_the_audience_it_was_for(
    staff: FlaskClient, offer: Callable[..., Offer]
) -> None:
    vip = Audience(name="Very important")
    db.session.add(vip)
    db.session.flush()
    campaign = draft_actions.save_offer_draft(offer(audience_id=vip.id).id, EmailContent(), "resend", "mia")
    launch_actions.schedule_campaign(campaign.id, SOON, "mia")
    transitions.cancel_campaign(campaign.id, "mia")
    page = staff.get(f"/campaigns/{campaign.id}").text
    assert "Very important" in page
    assert "(0" not in page
    assert "0 of 0" not in " ".join(staff.get("/campaigns").text.split())


def test_the_launch_says_whose_subject_it_shows_and_that_mails_go_nowhere_yet(
    staff: FlaskClient, draft: Campaign, with_settings: Callable[..., object]
) -> None:
    page = staff.get(f"/campaigns/{draft.id}/launch").text
    assert "for example" not in page
    assert "do not reach customers yet" not in page
    draft_actions.update_draft(draft.id, EmailContent("For {{ customer.name }}"), "resend", "mia")
    with_settings(uses_mail_sink=True)
    page = staff.get(f"/campaigns/{draft.id}/launch").text
    assert "Subject (example)" in page
    assert "do not reach customers yet" in page


def test_what_waits_is_taken_back_or_cancelled_on_its_page(staff: FlaskClient, draft: Campaign) -> None:
    launch_actions.schedule_campaign(draft.id, SOON, "tom")
    assert staff.get(f"/campaigns/{draft.id}").headers["Location"] == f"/campaigns/{draft.id}/launch"
    answer = staff.post(f"/campaigns/{draft.id}/draft", follow_redirects=True)
    assert "The campaign is a draft again" in answer.text
    launch_actions.schedule_campaign(draft.id, SOON, "tom")
    assert "Cancelled" in staff.post(f"/campaigns/{draft.id}/cancel", follow_redirects=True).text


def test_a_mail_that_waits_is_not_rewritten(staff: FlaskClient, draft: Campaign) -> None:
    launch_actions.schedule_campaign(draft.id, SOON, "tom")
    with pytest.raises(DomainError, match="Return it to draft"):
        draft_actions.update_draft(draft.id, EmailContent("New"), "resend", "mia")


def test_the_list_shows_one_state(staff: FlaskClient, draft: Campaign, offer: Callable[..., Offer]) -> None:
    launch_actions.schedule_campaign(draft.id, SOON, "tom")
    draft_actions.save_offer_draft(offer("WINTER").id, EmailContent(), "resend", "tom")
    page = staff.get("/campaigns?state=scheduled").text
    assert ("SUMMER25" in page, "WINTER" in page) == (True, False)
    assert "No campaigns with this status" in staff.get("/campaigns?state=done").text


def test_old_addresses_lead_to_the_campaign(staff: FlaskClient, draft: Campaign) -> None:
    for old, new in (("mail", "mail"), ("launch", "launch")):
        answer = staff.get(f"/offers/{draft.offer_id}/{old}")
        assert answer.headers["Location"] == f"/campaigns/{draft.id}/{new}"


# --- for programs -------------------------------------------------------------------------------------


def test_a_program_launches_at_a_time_changes_it_and_launches_now(api: FlaskClient, draft: Campaign) -> None:
    at = (datetime.now(UTC) + timedelta(hours=2)).replace(microsecond=0)
    first = api.post("/api/v1/offers/SUMMER25/launch", json={"at": at.isoformat()})
    assert (first.status_code, first.get_json()["status"]) == (202, "scheduled")
    assert first.get_json()["scheduled_at"] == at.isoformat().replace("+00:00", "Z")
    later = (at + timedelta(hours=1)).isoformat()
    assert api.post("/api/v1/offers/SUMMER25/launch", json={"at": later}).get_json()["id"] == draft.id
    assert api.post("/api/v1/offers/SUMMER25/launch").get_json()["status"] == "preparing"
    assert api.post("/api/v1/offers/SUMMER25/launch", json={"at": later}).get_json()["status"] == "preparing"


@pytest.mark.parametrize(
    "at", ["2020-01-01T00:00:00Z", "2031-02-31T00:00:00Z", "9999-12-31T23:59:59Z", "2031-01-01T09:00:00", 7]
)
def test_a_program_is_told_what_is_wrong_with_a_time(api: FlaskClient, draft: Campaign, at: object) -> None:
    answer = api.post("/api/v1/offers/SUMMER25/launch", json={"at": at})
    assert (answer.status_code, answer.get_json()["errors"][0]["pointer"]) == (422, "/at")
    assert fresh(draft).status == "draft"


def test_a_program_cancels_what_waits(api: FlaskClient, draft: Campaign) -> None:
    launch_actions.schedule_campaign(draft.id, SOON, "tom")
    assert api.post(f"/api/v1/campaigns/{draft.id}/cancel").get_json()["status"] == "cancelled"


def test_campaigns_are_listed_by_offer_and_state_page_by_page(
    api: FlaskClient, draft: Campaign, offer: Callable[..., Offer]
) -> None:
    for n in range(4):
        draft_actions.save_offer_draft(offer(f"WINTER{n}").id, EmailContent(), "resend", "tom")
    launch_actions.schedule_campaign(draft.id, SOON, "tom")
    first = api.get("/api/v1/campaigns?status=draft&limit=3").get_json()
    rest = api.get(f"/api/v1/campaigns?status=draft&limit=3&cursor={first['next_cursor']}").get_json()
    assert [c["offer"] for c in [*first["campaigns"], *rest["campaigns"]]] == [
        "WINTER3",
        "WINTER2",
        "WINTER1",
        "WINTER0",
    ]
    assert rest["next_cursor"] is None
    assert [c["status"] for c in api.get("/api/v1/campaigns?offer=summer-25").get_json()["campaigns"]] == ["scheduled"]
    assert api.get("/api/v1/campaigns?status=nonsense").status_code == 422
    assert api.get("/api/v1/campaigns?offer=NOSUCH").status_code == 404
