"""What refused steps of a campaign say, and what the audit log and the task queue contain after accepted ones."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from flask import Flask
from sqlalchemy import select, text

from tests.support.campaigns import create_customers, refresh
from webapp.accounts.models import AuditEntry
from webapp.campaigns.content.placeholders import EmailContent
from webapp.campaigns.drafts import actions as draft_actions
from webapp.campaigns.launch import actions as launch_actions
from webapp.campaigns.launch import transitions
from webapp.campaigns.models import Campaign
from webapp.core.errors import DomainError, FieldError, InvalidInput, NotFound
from webapp.core.extensions import db, huey
from webapp.offers.models import Offer

SOON = datetime(2150, 7, 1, 12, tzinfo=UTC)
UNKNOWN_ID = 987


@pytest.fixture
def draft(app: Flask, make_offer: Callable[..., Offer]) -> Campaign:
    create_customers(2)
    return draft_actions.save_offer_draft(make_offer("Summer-25", ends_at=None).id, EmailContent(), "resend", "mia")


def set_status(campaign: Campaign, status: str, **values: object) -> None:
    """Set a campaign to a status, with the times that belong to it."""
    now = datetime.now(UTC)
    times = {
        "launched_at": None if status in ("draft", "scheduled") else now,
        "scheduled_at": now if status == "scheduled" else None,
        "cancelled_at": now if status == "cancelled" else None,
    }
    for name, value in (times | values | {"status": status}).items():
        setattr(campaign, name, value)
    db.session.commit()


def refused(action: Callable[[], object]) -> tuple[str, str]:
    """Return the key and the message of a refusal."""
    with pytest.raises(DomainError) as raised:
        action()
    return raised.value.key, raised.value.message


def take_tasks() -> list[str]:
    """Return the names of the enqueued tasks, and empty the queue."""
    names = [task.name for task in huey.pending()]
    huey.flush()
    return names


def test_every_step_is_recorded_with_its_campaign_and_continued_by_its_task(draft: Campaign) -> None:
    offer_id, campaign_id = draft.offer_id, draft.id
    tasks = []
    for action in (
        lambda: launch_actions.schedule_campaign(campaign_id, SOON.astimezone(ZoneInfo("Europe/Berlin")), "ann"),
        lambda: launch_actions.unschedule_campaign(campaign_id, "ben"),
        lambda: launch_actions.launch_campaign(campaign_id, "cleo"),
        lambda: transitions.pause_campaign(campaign_id, "dan"),
        lambda: transitions.resume_campaign(campaign_id, "eve"),
        lambda: transitions.cancel_campaign(campaign_id, "finn"),
    ):
        action()
        tasks.append(take_tasks())
    entries = db.session.scalars(select(AuditEntry).order_by(AuditEntry.id)).all()
    assert [(entry.actor, entry.action, entry.subject, entry.detail) for entry in entries] == [
        ("mia", "mail.saved", str(campaign_id), {"offer": offer_id}),
        ("ann", "campaign.scheduled", "Summer-25", {"campaign": campaign_id, "at": "2150-07-01T12:00:00+00:00"}),
        ("ben", "campaign.taken_back", str(campaign_id), None),
        ("cleo", "campaign.launched", "Summer-25", {"campaign": campaign_id}),
        ("dan", "campaign.paused", str(campaign_id), None),
        ("eve", "campaign.resumed", str(campaign_id), None),
        ("finn", "campaign.cancelled", str(campaign_id), None),
    ]
    assert tasks == [[], [], ["prepare"], [], ["prepare"], ["clean_up_cancelled"]]


def test_a_campaign_that_could_not_be_launched_is_launched_by_resuming_it(draft: Campaign) -> None:
    set_status(draft, "scheduled", launched_by="ann", scheduled_at=datetime.now(UTC))
    db.session.execute(text("update offer set paused_at = now()"))
    db.session.commit()
    assert launch_actions.launch_due_campaigns() == []
    assert refresh(draft).pause_reason == (
        "it could not be launched at the scheduled time. This offer is paused, so its code would not work. Resume the "
        "offer first"
    )
    assert take_tasks() == []
    entry = db.session.scalars(select(AuditEntry).order_by(AuditEntry.id.desc())).first()
    assert entry is not None
    assert (entry.actor, entry.action, entry.detail) == ("ann", "campaign.not_started", {"reason": "offer_paused"})
    db.session.execute(text("update offer set paused_at = null"))
    db.session.commit()
    resumed = transitions.resume_campaign(draft.id, "ben")
    assert (resumed.status, resumed.launched_by, take_tasks()) == ("preparing", "ben", ["prepare"])


def test_a_paused_or_cancelled_campaign_has_no_warning(draft: Campaign) -> None:
    set_status(draft, "sending", delivery_warning="The mail relay can't be reached.")
    paused = transitions.pause_campaign(draft.id, "ann")
    assert (paused.delivery_warning, paused.pause_reason, paused.finished_at) == (None, "paused by ann", None)
    draft.delivery_warning = "The mail relay can't be reached."
    db.session.commit()
    cancelled = transitions.cancel_campaign(draft.id, "ann")
    assert (cancelled.delivery_warning, cancelled.pause_reason) == (None, None)
    assert cancelled.finished_at == cancelled.cancelled_at is not None


def test_due_campaigns_are_prepared_by_a_task_each(draft: Campaign, make_offer: Callable[..., Offer]) -> None:
    other = draft_actions.save_offer_draft(make_offer("OTHER").id, EmailContent(), "resend", "mia")
    for campaign in (draft, other):
        set_status(campaign, "scheduled", launched_by="ann", scheduled_at=datetime.now(UTC))
    assert launch_actions.launch_due_campaigns() == [draft.id, other.id]
    assert [(task.name, task.args) for task in huey.pending()] == [("prepare", (draft.id,)), ("prepare", (other.id,))]


IN_PROGRESS = "This campaign is already in progress."
CANCELLED = "This campaign has been cancelled."
DONE = "This campaign has already finished."
NOT_LAUNCHED = "This campaign has not been launched yet."
SCHEDULED = "This campaign is scheduled."


@pytest.mark.parametrize(
    ("action", "status", "message"),
    [
        (transitions.pause_campaign, "draft", f"{NOT_LAUNCHED} It can't be paused."),
        (transitions.pause_campaign, "scheduled", f"{SCHEDULED} It can't be paused."),
        (transitions.pause_campaign, "done", f"{DONE} It can't be paused."),
        (transitions.resume_campaign, "scheduled", f"{SCHEDULED} It can't be resumed."),
        (transitions.resume_campaign, "cancelled", f"{CANCELLED} It can't be resumed."),
        (transitions.cancel_campaign, "draft", f"{NOT_LAUNCHED} It can't be cancelled."),
        (transitions.cancel_campaign, "done", f"{DONE} It can't be cancelled."),
        (launch_actions.unschedule_campaign, "sending", f"{IN_PROGRESS} It can't be returned to draft."),
        (launch_actions.unschedule_campaign, "preparing", f"{IN_PROGRESS} It can't be returned to draft."),
        (launch_actions.unschedule_campaign, "paused", "This campaign is paused. It can't be returned to draft."),
        (launch_actions.launch_campaign, "cancelled", "This campaign was cancelled. Create a new announcement."),
    ],
)
def test_a_refused_step_says_in_which_status_the_campaign_is(
    draft: Campaign, action: Callable[[int, str], object], status: str, message: str
) -> None:
    set_status(draft, status)
    assert refused(lambda: action(draft.id, "mia")) == ("conflict", message)
    if action is not launch_actions.launch_campaign:
        assert not db.session().in_transaction()
    assert refresh(draft).status == status


def test_a_launched_campaign_cannot_be_scheduled(draft: Campaign) -> None:
    set_status(draft, "sending")
    refusal = refused(lambda: launch_actions.schedule_campaign(draft.id, SOON, "mia"))
    assert refusal == ("conflict", f"{IN_PROGRESS} It can't be scheduled.")


def test_a_cancelled_reminder_is_not_launched_again(draft: Campaign) -> None:
    set_status(draft, "cancelled", kind="reminder")
    refusal = refused(lambda: launch_actions.launch_campaign(draft.id, "mia"))
    assert refusal == ("conflict", "This campaign was cancelled. Create a new reminder.")


@pytest.mark.parametrize(
    ("status", "expected_status", "message"),
    [
        (
            "draft", "scheduled",
            "This campaign has been unscheduled since you opened this page. Review it before you launch it.",
        ),
        (
            "scheduled", "draft",
            "This campaign has been scheduled since you opened this page. Review it before you launch it.",
        ),
        ("draft", "draft", None),
        ("draft", None, None),
        ("sending", "draft", None),
    ],
)  # fmt: skip
def test_a_launch_from_an_outdated_page_is_refused(
    draft: Campaign, status: str, expected_status: str | None, message: str | None
) -> None:
    set_status(draft, status)

    def launch() -> launch_actions.LaunchResult:
        return launch_actions.launch_campaign(draft.id, "mia", expected_status=expected_status)

    if message is None:
        assert launch().changed is (status == "draft")
    else:
        assert refused(launch) == ("conflict", message)


@pytest.mark.parametrize(
    ("status", "message"),
    [
        ("scheduled", "This campaign is scheduled. Return it to draft to edit the email."),
        ("sending", "This campaign has been launched, so the email can't be edited any more."),
        ("cancelled", "This campaign has been launched, so the email can't be edited any more."),
    ],
)
def test_only_a_draft_can_be_edited(draft: Campaign, status: str, message: str) -> None:
    set_status(draft, status)
    refusal = refused(lambda: draft_actions.update_draft(draft.id, EmailContent("New"), "hold", "mia"))
    assert refusal == ("conflict", message)
    assert refresh(draft).uncertain_policy == "resend"


def test_the_policy_is_one_of_two(draft: Campaign) -> None:
    error = FieldError("uncertain_policy", "policy_unknown", "Choose one of the two options.")
    saves: list[Callable[[], object]] = [
        lambda: draft_actions.update_draft(draft.id, EmailContent(), "maybe", "mia"),
        lambda: draft_actions.save_offer_draft(draft.offer_id, EmailContent(), "maybe", "mia"),
    ]
    for save in saves:
        with pytest.raises(InvalidInput) as raised:
            save()
        assert list(raised.value.errors) == [error]


def test_invalid_content_is_not_saved(draft: Campaign) -> None:
    content = EmailContent(subject="a\nb")
    saves: list[Callable[[], object]] = [
        lambda: draft_actions.update_draft(draft.id, content, "hold", "mia"),
        lambda: draft_actions.save_offer_draft(draft.offer_id, content, "hold", "mia"),
    ]
    for save in saves:
        with pytest.raises(InvalidInput) as raised:
            save()
        assert list(raised.value.errors) == [FieldError("subject", "line_break", "The subject must be one line.")]
    assert refresh(draft).uncertain_policy == "resend"


NO_OFFER, NO_CAMPAIGN = "This offer does not exist.", "This campaign does not exist."


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda: launch_actions.launch_announcement(UNKNOWN_ID, "mia"), NO_OFFER),
        (lambda: launch_actions.launch_reminder(UNKNOWN_ID, EmailContent(), "mia"), NO_OFFER),
        (lambda: draft_actions.save_offer_draft(UNKNOWN_ID, EmailContent(), "hold", "mia"), NO_OFFER),
        (lambda: draft_actions.update_draft(UNKNOWN_ID, EmailContent(), "hold", "mia"), NO_CAMPAIGN),
        (lambda: launch_actions.launch_campaign(UNKNOWN_ID, "mia"), NO_CAMPAIGN),
        (lambda: launch_actions.schedule_campaign(UNKNOWN_ID, SOON, "mia"), NO_CAMPAIGN),
        (lambda: launch_actions.unschedule_campaign(UNKNOWN_ID, "mia"), NO_CAMPAIGN),
        (lambda: transitions.pause_campaign(UNKNOWN_ID, "mia"), NO_CAMPAIGN),
        (lambda: transitions.resume_campaign(UNKNOWN_ID, "mia"), NO_CAMPAIGN),
        (lambda: transitions.cancel_campaign(UNKNOWN_ID, "mia"), NO_CAMPAIGN),
    ],
)
def test_an_unknown_offer_or_campaign_is_reported(app: Flask, action: Callable[[], object], message: str) -> None:
    with pytest.raises(NotFound) as raised:
        action()
    assert raised.value.message == message


@pytest.mark.parametrize(
    ("values", "key", "message"),
    [
        (
            {"ends_at": datetime.now(UTC) - timedelta(hours=1)}, "offer_expired",
            "This offer has ended, so its code would not work. Choose a later end date for the offer first.",
        ),
        (
            {"paused_at": datetime.now(UTC)}, "offer_paused",
            "This offer is paused, so its code would not work. Resume the offer first.",
        ),
        (
            {"max_redemptions": 1, "redeemed": 1}, "offer_exhausted",
            "This offer has reached its limit, so its code would not work. Raise the limit first.",
        ),
    ],
)  # fmt: skip
def test_a_code_that_would_not_work_is_not_sent(
    draft: Campaign, values: dict[str, Any], key: str, message: str
) -> None:
    offer = db.session.get_one(Offer, draft.offer_id)
    for name, value in values.items():
        # The cap is in both rows.
        for row in (offer, offer.counter):
            if name in row.__table__.columns:
                setattr(row, name, value)
    db.session.commit()
    assert refused(lambda: launch_actions.launch_campaign(draft.id, "mia")) == (key, message)
    set_status(draft, "paused")
    assert refused(lambda: transitions.resume_campaign(draft.id, "mia")) == (key, message)


@pytest.mark.parametrize(
    ("at", "key", "message"),
    [
        (datetime(2200, 1, 1, tzinfo=UTC), "time_out_of_range", "Choose a year from 2000 to 2199."),
        (
            datetime(2026, 1, 1, tzinfo=UTC), "time_past",
            "This time is in the past. Choose a later time, or launch the campaign now.",
        ),
        (
            SOON + timedelta(days=1), "time_after_end",
            "The offer will have ended, so its code would not work. Choose an earlier time, or a later end date for "
            "the offer.",
        ),
    ],
)  # fmt: skip
def test_an_invalid_launch_time_is_reported_at_its_field(draft: Campaign, at: datetime, key: str, message: str) -> None:
    db.session.get_one(Offer, draft.offer_id).ends_at = SOON
    db.session.commit()
    with pytest.raises(InvalidInput) as raised:
        launch_actions.schedule_campaign(draft.id, at, "mia")
    assert list(raised.value.errors) == [FieldError("at", key, message)]


# --- reminders --------------------------------------------------------------------------------------


def remind(campaign: Campaign) -> launch_actions.LaunchResult:
    return launch_actions.launch_reminder(campaign.offer_id, EmailContent(), "mia")


@pytest.mark.parametrize(
    ("status", "message"),
    [
        ("draft", "This offer has not been announced yet. Launch its announcement first."),
        ("scheduled", "This offer has not been announced yet. Launch its announcement first."),
        (
            "paused",
            "The announcement of this offer is paused. Launch the reminder after it has finished, or schedule it now.",
        ),
        (
            "sending",
            "The announcement of this offer is still being sent. Launch the reminder after it has finished, or "
            "schedule it now.",
        ),
    ],
)
def test_a_reminder_follows_a_finished_announcement(draft: Campaign, status: str, message: str) -> None:
    set_status(draft, status)
    assert refused(lambda: remind(draft)) == ("conflict", message)


def test_a_second_reminder_waits_for_the_first(draft: Campaign) -> None:
    set_status(draft, "done", sent_in_batches=2)
    first = launch_actions.launch_reminder(draft.offer_id, EmailContent(), "mia", at=SOON).campaign
    assert (first.kind, first.status, first.scheduled_at) == ("reminder", "scheduled", SOON)
    message = (
        f"Campaign {first.id} is an unfinished reminder for this offer. This campaign is scheduled. You can create "
        "another one after it has finished."
    )
    assert refused(lambda: remind(draft)) == ("conflict", message)


def test_a_reminder_needs_no_finished_announcement_of_other_offers(
    draft: Campaign, make_offer: Callable[..., Offer]
) -> None:
    set_status(draft, "done", sent_in_batches=2)
    assert launch_actions.launch_announcement(make_offer("OTHER").id, "mia").campaign.status == "preparing"
    assert remind(draft).campaign.status == "preparing"


def test_a_reminder_is_launched_while_emails_of_the_last_one_are_resent(draft: Campaign) -> None:
    set_status(draft, "done", sent_in_batches=2)
    last = remind(draft).campaign
    # As `resend_deliveries` sets it.
    set_status(last, "sending", sent_in_batches=1)
    assert remind(draft).campaign.status == "preparing"


def test_the_content_of_a_reminder_is_reported_by_the_fields_of_the_request(draft: Campaign) -> None:
    set_status(draft, "done", sent_in_batches=2)
    with pytest.raises(InvalidInput) as raised:
        launch_actions.launch_reminder(draft.offer_id, EmailContent(subject="a\nb"), "mia")
    assert [error.field for error in raised.value.errors] == ["mail.subject"]


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        (
            "insert into suppression (email, reason, source) select email, 'bounced', 'tests' from customer",
            "There are no recipients: the audience has no customers, or all of them are on the suppression list. "
            "Import customers first.",
        ),
        (
            "insert into redemption (offer_id, customer_id, channel) select 1, id, 'form' from customer",
            "There are no recipients: every customer who can be emailed has redeemed.",
        ),
        (
            # The other customer cannot be emailed.
            "insert into redemption (offer_id, customer_id, channel) values (1, 1, 'form'); "
            "insert into suppression (email, reason, source) values ('c1@example.com', 'bounced', 'tests')",
            "There are no recipients: every customer who can be emailed has redeemed.",
        ),
    ],
)
def test_a_reminder_without_recipients_is_refused(draft: Campaign, statement: str, message: str) -> None:
    set_status(draft, "done", sent_in_batches=2)
    db.session.execute(text(statement))
    db.session.commit()
    assert refused(lambda: remind(draft)) == ("audience_empty", message)
