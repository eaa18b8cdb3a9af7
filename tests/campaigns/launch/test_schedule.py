"""Scheduled campaigns, and all transitions between campaign states."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select, text

from tests.support.campaigns import create_customers
from tests.support.smtp_relay import Relay
from tests.support.sql_statements import recorded_statements
from webapp.accounts.models import AuditEntry, StaffUser
from webapp.campaigns import queries as campaign_queries
from webapp.campaigns import stats_queries
from webapp.campaigns.content.placeholders import EmailContent
from webapp.campaigns.drafts import actions as draft_actions
from webapp.campaigns.launch import actions as launch_actions
from webapp.campaigns.launch import cancellation, preparation, transitions
from webapp.campaigns.models import Campaign, decode_gaps
from webapp.campaigns.sending import batches, sender
from webapp.core import task_queue
from webapp.core.errors import DomainError, InvalidInput
from webapp.core.extensions import db, huey
from webapp.customers.models import Audience
from webapp.offers.models import Offer

SOON = datetime.now(UTC) + timedelta(hours=5)


@pytest.fixture
def draft(app: Flask, make_offer: Callable[..., Offer]) -> Campaign:
    """A draft to three customers."""
    create_customers(3)
    return draft_actions.save_offer_draft(make_offer().id, EmailContent("Hello", "Text"), "resend", "tests")


def reload(campaign: Campaign) -> Campaign:
    db.session.rollback()
    db.session.refresh(campaign)
    return campaign


def make_due(campaign: Campaign, ago: str = "1 second") -> None:
    db.session.execute(
        text("update campaign set scheduled_at = now() - cast(:ago as interval) where id = :id"),
        {"ago": ago, "id": campaign.id},
    )
    db.session.commit()


def find_error(campaign: Campaign, at: datetime) -> tuple[str, str]:
    """Schedule at a time that is refused; return the error's field and key."""
    with pytest.raises(InvalidInput) as raised:
        launch_actions.schedule_campaign(campaign.id, at, "mia")
    return raised.value.errors[0].field, raised.value.errors[0].key


# --- start times ------------------------------------------------------------------------------------


def test_a_scheduled_campaign_starts_at_its_time(draft: Campaign, relay: Relay) -> None:
    launch_actions.schedule_campaign(draft.id, SOON, "mia")
    task_queue.run("campaigns.sweep")
    assert (reload(draft).status, draft.launched_at) == ("scheduled", None)
    make_due(draft)
    task_queue.run("campaigns.start")
    assert (reload(draft).status, draft.launched_by) == ("preparing", "mia")
    preparation.prepare_campaign(draft.id)
    sender.send_pending_emails()
    assert len(relay.recipients) == 3


def test_a_missed_start_is_made_up_for_at_once(draft: Campaign) -> None:
    launch_actions.schedule_campaign(draft.id, SOON, "mia")
    make_due(draft, ago="3 days")
    task_queue.run("campaigns.sweep")
    assert reload(draft).status == "preparing"


def test_concurrent_workers_start_a_campaign_once(app: Flask, draft: Campaign) -> None:
    launch_actions.schedule_campaign(draft.id, SOON, "mia")
    make_due(draft)
    started_ids: list[list[int]] = []

    def start() -> None:
        with app.app_context():
            started_ids.append(launch_actions.launch_due_campaigns())

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [campaign_id for ids in started_ids for campaign_id in ids] == [draft.id]


@pytest.mark.parametrize(
    ("at", "key"),
    [
        (datetime.now(UTC) - timedelta(seconds=1), "time_past"),
        (datetime(9999, 12, 31, tzinfo=UTC), "time_out_of_range"),
        (datetime.now(UTC) + timedelta(days=31), "time_after_end"),
    ],
)
def test_an_invalid_time_is_rejected_at_its_field(draft: Campaign, at: datetime, key: str) -> None:
    assert find_error(draft, at) == ("at", key)
    assert reload(draft).status == "draft"


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        ("paused_at = now()", "This offer is paused"),
        ("ends_at = now() - interval '1 hour'", "This offer has ended"),
        (
            "max_redemptions = 1; update offer_counter set max_redemptions = 1, redeemed = 1",
            "This offer has reached its limit",
        ),
    ],
)
def test_a_campaign_that_cannot_start_is_paused_with_the_reason(draft: Campaign, edit: str, reason: str) -> None:
    launch_actions.schedule_campaign(draft.id, SOON, "mia")
    db.session.execute(text(f"update offer set {edit}"))
    make_due(draft)
    assert launch_actions.launch_due_campaigns() == []
    assert (reload(draft).status, reason in (draft.pause_reason or "")) == ("paused", True)
    assert [campaign.id for campaign in campaign_queries.list_campaigns_needing_attention()] == [draft.id]
    with pytest.raises(DomainError, match=reason):
        transitions.resume_campaign(draft.id, "tom")
    assert reload(draft).status == "paused"
    entry = db.session.scalars(select(AuditEntry).where(AuditEntry.action == "campaign.not_started")).one()
    assert (entry.actor, entry.subject, list(entry.detail or {})) == ("mia", str(draft.id), ["reason"])
    db.session.execute(text("update offer set paused_at = null, ends_at = null, max_redemptions = null"))
    db.session.execute(text("update offer_counter set max_redemptions = null, redeemed = 0"))
    db.session.commit()
    resumed = transitions.resume_campaign(draft.id, "tom")
    assert (resumed.status, resumed.pause_reason, resumed.launched_at is None) == ("preparing", None, False)


def test_an_empty_audience_at_the_start_pauses_the_campaign(draft: Campaign) -> None:
    launch_actions.schedule_campaign(draft.id, SOON, "mia")
    db.session.execute(text("delete from customer"))
    make_due(draft)
    launch_actions.launch_due_campaigns()
    assert (reload(draft).status, "There are no recipients" in (draft.pause_reason or "")) == ("paused", True)
    create_customers(1)
    assert transitions.resume_campaign(draft.id, "tom").status == "preparing"


def test_the_offer_is_frozen_at_the_start_not_when_scheduled(draft: Campaign) -> None:
    launch_actions.schedule_campaign(draft.id, SOON, "mia")
    offer = db.session.get_one(Offer, draft.offer_id)
    assert offer.frozen_at is None
    db.session.execute(text("insert into audience (name) values ('One')"))
    db.session.execute(text("insert into audience_member select 1, min(id) from customer"))
    db.session.execute(text("update offer set audience_id = 1"))
    make_due(draft)
    launch_actions.launch_due_campaigns()
    preparation.prepare_campaign(draft.id)
    db.session.refresh(offer)
    assert offer.frozen_at is not None
    assert reload(draft).total == 1


def test_rescheduling_changes_the_time_and_is_idempotent(draft: Campaign) -> None:
    assert launch_actions.schedule_campaign(draft.id, SOON, "mia").changed
    assert not launch_actions.schedule_campaign(draft.id, SOON, "mia").changed
    later = launch_actions.schedule_campaign(draft.id, SOON + timedelta(hours=1), "tom")
    assert (later.changed, later.campaign.scheduled_at) == (True, SOON + timedelta(hours=1))


def test_taking_back_a_schedule_is_in_the_audit_log(draft: Campaign) -> None:
    launch_actions.schedule_campaign(draft.id, SOON, "mia")
    for _ in range(2):
        launch_actions.unschedule_campaign(draft.id, "tom")

    entry = db.session.scalars(select(AuditEntry).where(AuditEntry.action == "campaign.taken_back")).one()
    assert (entry.actor, entry.subject) == ("tom", str(draft.id))


@pytest.mark.parametrize("paused_at", [None, SOON])
def test_a_campaign_rescheduled_at_the_last_moment_is_neither_started_nor_paused(
    draft: Campaign, monkeypatch: pytest.MonkeyPatch, paused_at: datetime | None
) -> None:
    launch_actions.schedule_campaign(draft.id, SOON, "mia")
    make_due(draft)
    due = launch_actions.launch_due_campaigns.__globals__["launch_queries"].list_due_campaign_ids()
    launch_actions.schedule_campaign(draft.id, SOON, "mia")
    db.session.execute(text("update offer set paused_at = :at"), {"at": paused_at})
    db.session.commit()
    monkeypatch.setattr("webapp.campaigns.launch.queries.list_due_campaign_ids", lambda: due)
    assert launch_actions.launch_due_campaigns() == []
    assert (reload(draft).status, draft.pause_reason) == ("scheduled", None)
    assert "campaign.not_started" not in db.session.scalars(select(AuditEntry.action)).all()


@pytest.mark.parametrize("state", ["scheduled", "paused before its start"])
def test_a_campaign_returned_to_draft_has_neither_a_time_nor_a_reason(draft: Campaign, state: str) -> None:
    bring_to(state, draft)
    launch_actions.unschedule_campaign(draft.id, "tom")
    assert (reload(draft).scheduled_at, draft.pause_reason, draft.launched_by) == (None, None, None)


def test_only_a_near_start_enqueues_a_task(draft: Campaign) -> None:
    launch_actions.schedule_campaign(draft.id, SOON, "mia")
    assert huey.pending() == []
    launch_actions.schedule_campaign(draft.id, datetime.now(UTC) + timedelta(seconds=50), "mia")
    assert [task.eta is not None for task in huey.pending()] == [True]


# --- every state ------------------------------------------------------------------------------------

STATES = ("draft", "scheduled", "preparing", "sending", "paused", "paused before its start", "cancelled", "done")
ACTIONS: dict[str, Callable[[int], object]] = {
    "launch": lambda i: launch_actions.launch_campaign(i, "mia"),
    "schedule": lambda i: launch_actions.schedule_campaign(i, SOON, "mia"),
    "unschedule": lambda i: launch_actions.unschedule_campaign(i, "mia"),
    "pause": lambda i: transitions.pause_campaign(i, "mia"),
    "resume": lambda i: transitions.resume_campaign(i, "mia"),
    "cancel": lambda i: transitions.cancel_campaign(i, "mia"),
}
# The state after each action in each state; None where it is refused. The table of docs/campaigns.md.
TABLE: dict[str, tuple[str | None, ...]] = {
    "launch": ("preparing", "preparing", "preparing", "sending", "paused", "paused", None, "done"),
    "schedule": ("scheduled", "scheduled", None, None, None, None, None, None),
    "unschedule": ("draft", "draft", None, None, None, "draft", None, None),
    "pause": (None, None, "paused", "paused", "paused", "paused", None, None),
    "resume": (None, None, "preparing", "sending", "sending", "preparing", None, None),
    "cancel": (None, "cancelled", "cancelled", "cancelled", "cancelled", "cancelled", "cancelled", None),
}


def bring_to(state: str, campaign: Campaign) -> None:
    """Bring a new campaign into a state by the usual actions."""
    if state == "draft":
        return
    if state.startswith(("scheduled", "paused before")):
        launch_actions.schedule_campaign(campaign.id, SOON, "mia")
    if state == "paused before its start":
        db.session.execute(text("update offer set paused_at = now()"))
        make_due(campaign)
        launch_actions.launch_due_campaigns()
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
@pytest.mark.parametrize("action", ACTIONS)
def test_every_action_follows_the_table_and_is_idempotent(
    draft: Campaign, relay: Relay, state: str, action: str
) -> None:
    bring_to(state, draft)
    before = reload(draft).status
    new_state = TABLE[action][STATES.index(state)]
    for _ in range(2):
        if new_state is None:
            with pytest.raises(DomainError) as raised:
                ACTIONS[action](draft.id)
            assert raised.value.key == "conflict"
            assert re.match(r"This campaign (is|was|has) ", raised.value.message)
        else:
            ACTIONS[action](draft.id)
        assert reload(draft).status == (new_state or before)


# --- cancelling -------------------------------------------------------------------------------------


def test_cancelling_runs_the_same_statements_for_any_size(app: Flask, make_offer: Callable[..., Offer]) -> None:
    def cancel_statements(code: str) -> list[str]:
        campaign = launch_actions.launch_announcement(make_offer(code).id, "tests").campaign
        preparation.prepare_campaign(campaign.id)
        with recorded_statements() as executed:
            transitions.cancel_campaign(campaign.id, "mia")
        return [statement for statement, _ in executed]

    create_customers(3)
    few = cancel_statements("FEW")
    create_customers(2600, first=10)
    assert cancel_statements("MANY") == few
    assert not any(" batch" in statement or "mail_issue" in statement for statement in few)


def test_a_cancelled_campaign_is_cleaned_up_in_chunks(
    app: Flask, make_offer: Callable[..., Offer], relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_customers(1600)
    relay.behaviour.rcpt["c1@example.com"] = relay.behaviour.rcpt["c2@example.com"] = "450 later"
    campaign = launch_actions.launch_announcement(make_offer().id, "tests").campaign
    preparation.prepare_campaign(campaign.id)
    db.session.execute(text("update batch set not_before = now() + interval '1 hour' where seq > 0"))
    db.session.commit()
    sender.send_pending_emails()
    transitions.cancel_campaign(campaign.id, "mia")
    before = stats_queries.get_campaign_stats(campaign.id)
    monkeypatch.setattr(cancellation, "CLEANUP_CHUNK_SIZE", 1)
    cancellation.clean_up_cancelled_campaigns()
    assert db.session.execute(text("select status, count(*) from batch group by 1 order by 1")).all() == [
        ("cancelled", 3),
        ("done", 1),
    ]
    assert db.session.execute(text("select state, next_at from mail_issue")).all() == [("skipped", None)] * 2
    assert reload(campaign).sent_in_batches == 498
    after = stats_queries.get_campaign_stats(campaign.id)
    assert (after.sent, after.skipped, after.deferred) == (before.sent, before.skipped, before.deferred) == (498, 2, 0)


def test_a_finished_campaign_keeps_its_sent_count(draft: Campaign, relay: Relay) -> None:
    bring_to("done", draft)
    assert reload(draft).sent_in_batches == 3
    db.session.execute(text("update batch set sent = 0"))
    assert stats_queries.get_campaign_stats(draft.id).sent == 3


# --- a new campaign after a cancellation --------------------------------------------------------------


@pytest.fixture
def half_sent(app: Flask, make_offer: Callable[..., Offer], relay: Relay) -> tuple[Offer, list[int]]:
    """An offer whose campaign was cancelled after the first of two batches.

    c1 failed and c2 is uncertain.
    """
    ids = create_customers(700)
    relay.behaviour.rcpt["c1@example.com"] = "550 no"
    offer = make_offer()
    campaign = launch_actions.launch_announcement(offer.id, "tests").campaign
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
    return offer, ids


def launch_again(offer_id: int, policy: str = "resend", to_all: bool | None = None) -> list[int]:
    """Launch a new campaign of the offer; return the ids of its recipients."""
    campaign = draft_actions.save_offer_draft(offer_id, EmailContent("Again"), policy, "mia")
    launch_actions.launch_campaign(campaign.id, "mia", to_all)
    preparation.prepare_campaign(campaign.id)
    rows = db.session.execute(text("select gaps from batch where campaign_id = :id order by seq"), {"id": campaign.id})
    return [customer_id for row in rows for customer_id in decode_gaps(row.gaps)]


def test_a_new_campaign_goes_to_those_the_cancelled_one_did_not_reach(half_sent: tuple[Offer, list[int]]) -> None:
    offer, ids = half_sent
    assert launch_again(offer.id) == [ids[1], ids[2], *ids[500:]]


def test_a_new_campaign_under_hold_skips_uncertain_recipients(half_sent: tuple[Offer, list[int]]) -> None:
    offer, ids = half_sent
    assert launch_again(offer.id, "hold") == [ids[1], *ids[500:]]


def test_a_new_campaign_can_go_to_all_recipients_again(half_sent: tuple[Offer, list[int]]) -> None:
    offer, ids = half_sent
    assert launch_again(offer.id, to_all=True) == ids


def test_a_new_campaign_waits_until_the_cancelled_batch_is_released(
    app: Flask, make_offer: Callable[..., Offer]
) -> None:
    create_customers(3)
    offer = make_offer()
    first = launch_actions.launch_announcement(offer.id, "tests").campaign
    preparation.prepare_campaign(first.id)
    claim = batches.claim_batch("a worker")
    assert claim is not None
    transitions.cancel_campaign(first.id, "mia")
    assert launch_again(offer.id) == []
    batches.release_batch(claim)
    second = campaign_queries.find_announcement(offer.id)
    assert second is not None
    preparation.prepare_campaign(second.id)
    assert reload(second).total == 3


# --- pages --------------------------------------------------------------------------------------------


def launch(staff: FlaskClient, campaign: Campaign, **form: str) -> Any:
    return staff.post(f"/campaigns/{campaign.id}/launch", data={"when": "later", **form}, follow_redirects=True)


def test_a_typed_time_is_in_the_offers_time_zone(staff: FlaskClient, draft: Campaign) -> None:
    db.session.execute(text("update offer set time_zone = 'America/New_York', ends_at = null"))
    db.session.commit()
    response = launch(staff, draft, at="2199-01-10", at_time="09:00")
    assert "10 Jan 2199, 09:00 EST" in response.text
    assert "10 Jan 2199, 14:00 UTC for you" in response.text
    assert reload(draft).scheduled_at == datetime(2199, 1, 10, 14, tzinfo=UTC)
    assert "Will be launched on 10 Jan 2199" in staff.get("/campaigns").text
    assert "Will be launched on 10 Jan 2199" in staff.get(f"/offers/{draft.offer_id}").text


@pytest.mark.parametrize(
    ("form", "field", "message"),
    [
        ({"at": "2031-02-31", "at_time": "09:00"}, "at", "Not a valid date value."),
        ({"at": "2031-02-28", "at_time": "25:00"}, "at_time", "Not a valid time value."),
        ({"at": "2031-02-28", "at_time": ""}, "at_time", "Enter the time at which the campaign is launched"),
        ({"at": "", "at_time": ""}, "at", "Choose the day on which the campaign is launched."),
        ({"at": "9999-12-31", "at_time": "23:59"}, "at", "Choose a year from 2000 to 2199."),
        ({"at": "2020-01-01", "at_time": "09:00"}, "at", "This time is in the past."),
        ({"at": "2031-03-30", "at_time": "02:30"}, "at", "does not exist on that day in Europe/Berlin"),
        ({"at": "2031-10-26", "at_time": "02:30"}, "at", "occurs twice"),
        ({"at": "2032-01-01", "at_time": "00:00"}, "at", "The offer will have ended"),
    ],
)
def test_an_invalid_time_is_shown_at_its_field_and_kept(
    staff: FlaskClient, draft: Campaign, form: dict[str, str], field: str, message: str
) -> None:
    db.session.execute(text("update offer set time_zone = 'Europe/Berlin', ends_at = '2031-12-31 00:00+01'"))
    db.session.commit()
    response = launch(staff, draft, **form)
    assert response.status_code == 422
    assert re.search(rf'id="{field}-error"[^§]*?{re.escape(message)}', response.text)
    assert f'value="{form["at"]}"' in response.text
    assert reload(draft).status == "draft"


def test_an_ambiguous_time_is_asked_for(staff: FlaskClient, draft: Campaign) -> None:
    db.session.execute(text("update offer set time_zone = 'Europe/Berlin', ends_at = null"))
    db.session.commit()
    assert 'name="at_fold"' in launch(staff, draft, at="2031-10-26", at_time="02:30").text
    launch(staff, draft, at="2031-10-26", at_time="02:30", at_fold="1")
    assert reload(draft).scheduled_at == datetime(2031, 10, 26, 1, 30, tzinfo=UTC)


def test_a_launch_without_a_time_is_rejected(staff: FlaskClient, draft: Campaign) -> None:
    assert staff.post(f"/campaigns/{draft.id}/launch", data={"to_all": "no"}).status_code == 422
    assert reload(draft).status == "draft"


def test_an_action_on_an_outdated_page_shows_the_current_state(staff: FlaskClient, draft: Campaign) -> None:
    launch_actions.schedule_campaign(draft.id, SOON, "tom")
    launch_actions.launch_campaign(draft.id, "tom")
    for page, message in (
        ("draft", "is already in progress. It can&#39;t be returned to draft."),
        ("launch", "is already in progress. It can&#39;t be scheduled."),
    ):
        form = {"when": "later", "at": "2031-01-01", "at_time": "09:00"}
        response = staff.post(f"/campaigns/{draft.id}/{page}", data=form, follow_redirects=True)
        assert (response.request.path, message in response.text) == (f"/campaigns/{draft.id}", True)
    transitions.cancel_campaign(draft.id, "tom")
    fragment = staff.post(f"/campaigns/{draft.id}/pause", headers={"HX-Request": "true"}).text
    assert "This campaign has been cancelled. It can&#39;t be paused." in fragment
    assert "Cancelled" in fragment


def test_an_outdated_page_does_not_reschedule_an_unscheduled_campaign(staff: FlaskClient, draft: Campaign) -> None:
    launch_actions.schedule_campaign(draft.id, SOON, "mia")
    seen_statuses = re.findall(r'name="seen"[^>]*value="(\w+)"', staff.get(f"/campaigns/{draft.id}/launch").text)
    launch_actions.unschedule_campaign(draft.id, "mia")
    for form in ({"when": "later", "at": "2030-01-01", "at_time": "9:00"}, {"when": "now"}):
        response = staff.post(f"/campaigns/{draft.id}/launch", data={**form, "seen": seen_statuses[0]})
        assert (response.status_code, "has been unscheduled since" in response.text) == (409, True)
        assert reload(draft).status == "draft"
    assert 'name="seen" type="hidden" value="draft"' in response.text


def test_the_page_of_a_scheduled_campaign_redirects_when_it_starts(staff: FlaskClient, draft: Campaign) -> None:
    launch_actions.schedule_campaign(draft.id, SOON, "mia")
    poll_url = re.findall(r'hx-get="([^"]+)"\s+hx-trigger="every', staff.get(f"/campaigns/{draft.id}/launch").text)[0]
    waiting = staff.get(poll_url)
    assert (waiting.status_code, "HX-Redirect" in waiting.headers) == (204, False)
    launch_actions.launch_campaign(draft.id, "mia")
    assert staff.get(poll_url).headers["HX-Redirect"] == f"/campaigns/{draft.id}"


def test_a_campaign_cancelled_before_its_start_shows_its_audience(
    staff: FlaskClient, make_offer: Callable[..., Offer]
) -> None:
    vip = Audience(name="Very important")
    db.session.add(vip)
    db.session.flush()
    campaign = draft_actions.save_offer_draft(make_offer(audience_id=vip.id).id, EmailContent(), "resend", "mia")
    launch_actions.schedule_campaign(campaign.id, SOON, "mia")
    transitions.cancel_campaign(campaign.id, "mia")
    page = staff.get(f"/campaigns/{campaign.id}").text
    assert "Very important" in page
    assert "(0" not in page
    assert "0 of 0" not in " ".join(staff.get("/campaigns").text.split())


def test_the_launch_page_marks_an_example_subject_and_the_mail_sink(
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


def test_a_scheduled_campaign_can_be_unscheduled_or_cancelled(staff: FlaskClient, draft: Campaign) -> None:
    launch_actions.schedule_campaign(draft.id, SOON, "tom")
    assert staff.get(f"/campaigns/{draft.id}").headers["Location"] == f"/campaigns/{draft.id}/launch"
    response = staff.post(f"/campaigns/{draft.id}/draft", follow_redirects=True)
    assert "The campaign is a draft again" in response.text
    launch_actions.schedule_campaign(draft.id, SOON, "tom")
    assert "Cancelled" in staff.post(f"/campaigns/{draft.id}/cancel", follow_redirects=True).text


def test_a_scheduled_campaign_cannot_be_edited(staff: FlaskClient, draft: Campaign) -> None:
    launch_actions.schedule_campaign(draft.id, SOON, "tom")
    with pytest.raises(DomainError, match="Return it to draft"):
        draft_actions.update_draft(draft.id, EmailContent("New"), "resend", "mia")


def test_the_campaign_list_can_be_filtered_by_state(
    staff: FlaskClient, draft: Campaign, make_offer: Callable[..., Offer]
) -> None:
    launch_actions.schedule_campaign(draft.id, SOON, "tom")
    draft_actions.save_offer_draft(make_offer("WINTER").id, EmailContent(), "resend", "tom")
    page = staff.get("/campaigns?state=scheduled").text
    assert ("SUMMER25" in page, "WINTER" in page) == (True, False)
    assert "No campaigns with this status" in staff.get("/campaigns?state=done").text


def test_old_urls_redirect_to_the_campaign(staff: FlaskClient, draft: Campaign) -> None:
    for old, new in (("mail", "mail"), ("launch", "launch")):
        response = staff.get(f"/offers/{draft.offer_id}/{old}")
        assert response.headers["Location"] == f"/campaigns/{draft.id}/{new}"


# --- API ----------------------------------------------------------------------------------------------


def test_the_api_schedules_reschedules_and_launches(api: FlaskClient, draft: Campaign) -> None:
    at = (datetime.now(UTC) + timedelta(hours=2)).replace(microsecond=0)
    first = api.post("/api/v1/offers/SUMMER25/launch", json={"at": at.isoformat()})
    assert (first.status_code, first.get_json()["status"]) == (202, "scheduled")
    assert first.get_json()["scheduled_at"] == at.isoformat().replace("+00:00", "Z")
    later = (at + timedelta(hours=1)).isoformat()
    assert api.post("/api/v1/offers/SUMMER25/launch", json={"at": later}).get_json()["id"] == draft.id
    launched = api.post("/api/v1/offers/SUMMER25/launch").get_json()
    assert (launched["status"], launched["scheduled_at"]) == ("preparing", None)
    assert api.post("/api/v1/offers/SUMMER25/launch", json={"at": later}).get_json()["status"] == "preparing"


@pytest.mark.parametrize(
    "at", ["2020-01-01T00:00:00Z", "2031-02-31T00:00:00Z", "9999-12-31T23:59:59Z", "2031-01-01T09:00:00", 7]
)
def test_the_api_reports_an_invalid_time(api: FlaskClient, draft: Campaign, at: object) -> None:
    response = api.post("/api/v1/offers/SUMMER25/launch", json={"at": at})
    assert (response.status_code, response.get_json()["errors"][0]["pointer"]) == (422, "/at")
    assert reload(draft).status == "draft"


def test_the_api_cancels_a_scheduled_campaign(api: FlaskClient, draft: Campaign) -> None:
    launch_actions.schedule_campaign(draft.id, SOON, "tom")
    assert api.post(f"/api/v1/campaigns/{draft.id}/cancel").get_json()["status"] == "cancelled"


def test_the_api_lists_campaigns_by_offer_and_state_in_pages(
    api: FlaskClient, draft: Campaign, make_offer: Callable[..., Offer]
) -> None:
    for n in range(4):
        draft_actions.save_offer_draft(make_offer(f"WINTER{n}").id, EmailContent(), "resend", "tom")
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


def test_the_page_of_a_disabled_user_lists_the_campaigns_that_will_still_be_launched(
    draft: Campaign,
    sign_in: Callable[..., FlaskClient],
    make_staff_user: Callable[..., StaffUser],
    make_offer: Callable[..., Offer],
) -> None:
    eve, ann = make_staff_user("manager", email="eve@example.com"), make_staff_user("manager", email="ann@example.com")
    launch_actions.schedule_campaign(draft.id, datetime.now(UTC) + timedelta(days=1), by=eve.email)
    launched = launch_actions.launch_announcement(make_offer("LAUNCHED").id, eve.email).campaign
    next_offer_id = make_offer("NEXT").id
    scheduled_next = launch_actions.launch_announcement(
        next_offer_id, eve.email, datetime.now(UTC) + timedelta(hours=1)
    )
    client = sign_in("admin")
    link = f'<a href="/campaigns/{draft.id}/launch">'
    assert link not in client.get(f"/settings/people/{eve.id}").text

    for user in (eve, ann):
        client.post(f"/settings/people/{user.id}/disable")

    page = client.get(f"/settings/people/{eve.id}").text
    assert re.findall(r'<a href="/campaigns/(\d+)', page) == [str(scheduled_next.campaign.id), str(draft.id)]
    assert (link in page, f'"/campaigns/{launched.id}' in page) == (True, False)
    assert link not in client.get(f"/settings/people/{ann.id}").text
