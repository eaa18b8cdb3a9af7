"""Drafting, launching, pausing, resuming and cancelling campaigns."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from flask import Flask
from sqlalchemy import event, select, text

from tests.support.campaigns import create_customers
from webapp.accounts.models import AuditEntry
from webapp.campaigns import queries as campaign_queries
from webapp.campaigns.content.placeholders import DEFAULT_SUBJECT, DEFAULT_TEXT, MAX_BODY_BYTES, EmailContent
from webapp.campaigns.content.validation import validate_content
from webapp.campaigns.deliveries import actions as delivery_actions
from webapp.campaigns.deliveries.actions import DeliverySelection
from webapp.campaigns.drafts import actions as draft_actions
from webapp.campaigns.drafts import versions as draft_versions
from webapp.campaigns.launch import actions as launch_actions
from webapp.campaigns.launch import cancellation, preparation, transitions
from webapp.campaigns.models import Campaign, decode_gaps
from webapp.core import task_queue
from webapp.core.errors import DomainError, InvalidInput, NotFound
from webapp.core.extensions import db, huey
from webapp.core.money import Discount
from webapp.customers import actions as customer_actions
from webapp.customers.models import Audience
from webapp.offers.models import Offer, OfferValues

VALUES = OfferValues(
    name="Summer",
    discount=Discount("percent", percent=Decimal(25)),
    starts_at=datetime(2026, 1, 1, tzinfo=UTC),
    code="SUMMER25",
)


def find_errors(content: EmailContent) -> dict[str, str]:
    """Validate content that is invalid; return its errors by field."""
    with pytest.raises(InvalidInput) as raised:
        validate_content(content)
    return {error.field: error.message for error in raised.value.errors}


# --- content ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["subject", "text", "html"])
def test_an_unknown_placeholder_is_reported_with_the_available_ones(field: str) -> None:
    message = find_errors(EmailContent(**{field: "Hi {{ customer.shoe_size }}"}))[field]
    assert "{{ customer.shoe_size }}" in message
    assert "{{ customer.name }}, {{ customer.email }}" in message


@pytest.mark.parametrize(
    "source",
    [
        "{{ customer.name",
        "{{ customer.name }",
        "{{}}",
        "{{ 7 * 7 }}",
        "{{ customer.__class__ }}",
        "{{ customer['name'] }}",
        "{{ config }}",
        "{{ customer.name|upper }}",
        "{% for x in y %}",
        "{{ customer.name or offer.name }}",
        "{{ {{ customer.name }} }}",
    ],
)
def test_expressions_in_placeholders_are_rejected(source: str) -> None:
    assert "Available placeholders" in find_errors(EmailContent(text=source))["text"]


@pytest.mark.parametrize(
    "source", ["{{customer.name}}", "{{ customer.name or 'you' }}", "a { b } c", "<style>@media x{a{b:c}}</style>", ""]
)
def test_valid_content_is_accepted(app: Flask, source: str) -> None:
    validate_content(EmailContent(html=source))


@pytest.mark.parametrize("subject", ["a\nb", "a\r\nBcc: eve@example.com"])
def test_a_subject_with_a_line_break_is_rejected(subject: str) -> None:
    assert find_errors(EmailContent(subject=subject)) == {"subject": "The subject must be one line."}


def test_a_body_that_is_too_large_is_rejected() -> None:
    assert "larger than 256 kB" in find_errors(EmailContent(html="ß" * (MAX_BODY_BYTES // 2 + 1)))["html"]


def test_characters_that_cannot_be_sent_are_rejected() -> None:
    assert set(find_errors(EmailContent(subject="a\0", text="\ud800", html="\ue000"))) == {"subject", "text", "html"}


def test_the_default_email_is_valid() -> None:
    validate_content(EmailContent(DEFAULT_SUBJECT, DEFAULT_TEXT))


# --- drafts -----------------------------------------------------------------------------------------


def test_an_offer_and_its_announcement_are_created_together(app: Flask) -> None:
    offer = draft_actions.create_offer_with_announcement(VALUES, EmailContent("Hello", "Text"), "tests")
    draft = campaign_queries.find_announcement(offer.id)
    assert draft is not None
    assert (draft.status, draft.subject, draft.text) == ("draft", "Hello", "Text")


def test_invalid_content_creates_no_offer_and_reports_all_errors(app: Flask) -> None:
    with pytest.raises(InvalidInput) as raised:
        draft_actions.create_offer_with_announcement(
            replace(VALUES, name=""), EmailContent(text="{{ nothing }}"), "tests"
        )
    assert {error.field for error in raised.value.errors} == {"name", "mail.text"}
    with pytest.raises(InvalidInput):
        draft_actions.create_offer_with_announcement(VALUES, EmailContent(text="{{ nothing }}"), "tests")
    db.session.rollback()
    assert db.session.scalars(select(Offer)).all() == []


def test_saving_a_draft_again_updates_it(app: Flask, make_offer: Callable[..., Offer]) -> None:
    offer = make_offer()
    first = draft_actions.save_offer_draft(offer.id, EmailContent("One"), "resend", "tests")
    second = draft_actions.save_offer_draft(offer.id, EmailContent("Two"), "hold", "tests")
    assert (second.id, second.subject, second.uncertain_policy) == (first.id, "Two", "hold")
    third = draft_actions.save_offer_draft(offer.id, EmailContent(), "hold", "tests")
    assert (third.subject, third.text) == (str(DEFAULT_SUBJECT), "")


def test_a_launched_campaign_cannot_be_edited(app: Flask, make_offer: Callable[..., Offer]) -> None:
    create_customers(1)
    offer = make_offer()
    launch_actions.launch_announcement(offer.id, "tests")
    with pytest.raises(DomainError, match="has been launched"):
        draft_actions.save_offer_draft(offer.id, EmailContent("New"), "resend", "tests")


def test_a_draft_needs_an_offer(app: Flask) -> None:
    with pytest.raises(NotFound):
        draft_actions.save_offer_draft(99, EmailContent(), "resend", "tests")


# --- launching --------------------------------------------------------------------------------------


def test_a_launch_freezes_the_offer_and_is_audited(app: Flask, make_offer: Callable[..., Offer]) -> None:
    create_customers(1)
    offer = make_offer()
    launched = launch_actions.launch_announcement(offer.id, "mia@example.com")
    assert launched.changed
    assert (launched.campaign.status, launched.campaign.launched_by) == ("preparing", "mia@example.com")
    db.session.refresh(offer)
    assert offer.frozen_at is not None
    assert "campaign.launched" in db.session.scalars(select(AuditEntry.action)).all()


def test_a_second_launch_changes_nothing(app: Flask, make_offer: Callable[..., Offer]) -> None:
    create_customers(1)
    offer = make_offer()
    first = launch_actions.launch_announcement(offer.id, "one")
    second = launch_actions.launch_announcement(offer.id, "two")
    assert (second.changed, second.campaign.id, second.campaign.launched_by) == (False, first.campaign.id, "one")


def test_concurrent_launches_create_one_campaign(app: Flask, make_offer: Callable[..., Offer]) -> None:
    create_customers(1)
    offer_id = make_offer().id
    changed: list[bool] = []
    threads = [threading.Thread(target=_launch, args=(app, offer_id, changed)) for _ in range(8)]
    _run_concurrently(threads, lock=None)
    assert sorted(changed) == [False] * 7 + [True]
    assert len(campaign_queries.list_offer_campaigns(offer_id)) == 1


def test_concurrent_launches_of_one_draft_launch_it_once(app: Flask, make_offer: Callable[..., Offer]) -> None:
    create_customers(1)
    offer_id = make_offer().id
    draft = draft_actions.save_offer_draft(offer_id, EmailContent(), "resend", "tests")
    changed: list[bool] = []
    threads = [threading.Thread(target=_launch, args=(app, offer_id, changed)) for _ in range(6)]
    _run_concurrently(threads, lock=draft.id)
    assert sorted(changed) == [False] * 5 + [True]


def _launch(app: Flask, offer_id: int, changed: list[bool]) -> None:
    with app.app_context():
        changed.append(launch_actions.launch_announcement(offer_id, "tests").changed)


def _run_concurrently(threads: list[threading.Thread], lock: int | None) -> None:
    """Run threads; with a campaign id, hold its row lock until all wait for it."""
    if lock is not None:
        db.session.execute(text("select 1 from campaign where id = :id for update"), {"id": lock})
        return _run_until_locked(threads)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return None


def _run_until_locked(threads: list[threading.Thread]) -> None:
    """Run threads and commit this transaction once all of them wait for its locks."""
    for thread in threads:
        thread.start()
    lock_waits = text(
        "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
    )
    while db.session.execute(lock_waits).scalar_one() < len(threads):
        time.sleep(0.01)
        db.session.execute(text("select pg_stat_clear_snapshot()"))
    db.session.commit()
    for thread in threads:
        thread.join()


def test_only_the_first_launch_enqueues_a_task(app: Flask, make_offer: Callable[..., Offer]) -> None:
    create_customers(1)
    offer = make_offer()
    launch_actions.launch_announcement(offer.id, "tests")
    launch_actions.launch_announcement(offer.id, "tests")
    assert huey.storage.queue_size() == 1


def test_a_launch_runs_the_same_statements_for_any_audience(app: Flask, make_offer: Callable[..., Offer]) -> None:
    def launch_statements(code: str) -> list[str]:
        executed: list[str] = []

        def record(connection: object, cursor: object, statement: str, *rest: object) -> None:
            executed.append(statement)

        offer = make_offer(code)
        event.listen(db.engine, "before_cursor_execute", record)
        try:
            launch_actions.launch_announcement(offer.id, "tests")
        finally:
            event.remove(db.engine, "before_cursor_execute", record)
        return executed

    create_customers(10)
    few = launch_statements("FEW10")
    db.session.execute(
        text(
            "insert into customer (email, email_as_given) select 'x' || g || '@example.com', '' "
            "from generate_series(1, 100000) g"
        )
    )
    db.session.commit()
    many = launch_statements("MANY100000")
    assert many == few
    assert db.session.execute(text("select count(*) from batch")).scalar() == 0


@pytest.mark.parametrize("kind", ["no customers", "all unsubscribed", "all erased", "empty audience"])
def test_a_launch_without_recipients_is_refused(app: Flask, make_offer: Callable[..., Offer], kind: str) -> None:
    values = {}
    ids = create_customers(3) if kind != "no customers" else []
    if kind == "all unsubscribed":
        db.session.execute(
            text("insert into suppression (email, reason, source) select email, 'unsubscribed', 'tests' from customer")
        )
    if kind == "all erased":
        for customer_id in ids:
            customer_actions.erase_customer(customer_id, by="tests")
    if kind == "empty audience":
        audience = Audience(name="Empty")
        db.session.add(audience)
        db.session.flush()
        values["audience_id"] = audience.id
    db.session.commit()
    offer = make_offer(**values)
    with pytest.raises(DomainError, match="There are no recipients") as raised:
        launch_actions.launch_announcement(offer.id, "tests")
    assert raised.value.key == "audience_empty"
    db.session.refresh(offer)
    assert offer.frozen_at is None


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"ends_at": datetime.now(UTC) - timedelta(hours=1)}, "offer_expired"),
        ({"paused_at": datetime.now(UTC)}, "offer_paused"),
        ({"max_redemptions": 1, "redeemed": 1}, "offer_exhausted"),
    ],
)
def test_an_offer_with_an_unusable_code_is_not_launched(
    app: Flask, make_offer: Callable[..., Offer], values: dict[str, object], key: str
) -> None:
    create_customers(1)
    offer = make_offer(**values)
    with pytest.raises(DomainError) as raised:
        launch_actions.launch_announcement(offer.id, "tests")
    assert raised.value.key == key


def test_an_offer_that_starts_later_can_be_launched(app: Flask, make_offer: Callable[..., Offer]) -> None:
    create_customers(1)
    assert launch_actions.launch_announcement(
        make_offer(starts_at=datetime.now(UTC) + timedelta(days=1)).id, "tests"
    ).changed


def test_the_recipients_are_the_audience_at_the_launch(app: Flask, make_offer: Callable[..., Offer]) -> None:
    ids = create_customers(4)
    audience = Audience(name="Two")
    db.session.add(audience)
    db.session.flush()
    db.session.execute(
        text("insert into audience_member (audience_id, customer_id) select :a, unnest(cast(:ids as bigint[]))"),
        {"a": audience.id, "ids": ids[1:3]},
    )
    offer = make_offer(audience_id=audience.id)
    campaign = launch_actions.launch_announcement(offer.id, "tests").campaign
    offer.audience_id = None
    db.session.commit()
    preparation.prepare_campaign(campaign.id)
    assert decode_gaps(db.session.execute(text("select gaps from batch")).scalar() or []) == ids[1:3]


def test_a_launch_uses_the_audience_of_an_earlier_concurrent_edit(app: Flask, make_offer: Callable[..., Offer]) -> None:
    create_customers(1)
    audience = Audience(name="Everyone but new")
    db.session.add(audience)
    db.session.flush()
    db.session.execute(text("insert into audience_member select :id, id from customer"), {"id": audience.id})
    offer = make_offer()
    draft_actions.save_offer_draft(offer.id, EmailContent(), "resend", "tests")
    offer_id, audience_id = offer.id, audience.id
    assert _launch_during_edit(app, offer_id, f"audience_id = {audience_id}") == "launched"
    campaign = campaign_queries.find_announcement(offer_id)
    assert campaign is not None
    assert campaign.audience_id == audience_id


@pytest.mark.parametrize(
    ("edit", "key"), [("paused_at = now()", "offer_paused"), ("ends_at = now() - interval '1 hour'", "offer_expired")]
)
def test_an_offer_stopped_during_its_launch_is_not_launched(
    app: Flask, make_offer: Callable[..., Offer], edit: str, key: str
) -> None:
    create_customers(1)
    offer = make_offer()
    draft_actions.save_offer_draft(offer.id, EmailContent(), "resend", "tests")
    assert _launch_during_edit(app, offer.id, edit) == key


def _launch_during_edit(app: Flask, offer_id: int, edit: str) -> str:
    """Launch while an edit is uncommitted; return the outcome or error key."""
    db.session.commit()
    db.session.execute(text(f"update offer set {edit} where id = :id"), {"id": offer_id})
    return _run_until_commit(app, lambda: launch_actions.launch_announcement(offer_id, "tests"))[0]


def _run_until_commit(app: Flask, action: Callable[[], object]) -> tuple[str, str]:
    """Run an action that waits for a lock of this transaction; return the key and the message of its error.

    The key is "launched" when there is no error.
    """
    outcomes: list[tuple[str, str]] = []

    def run() -> None:
        with app.app_context():
            try:
                action()
            except DomainError as error:
                outcomes.append((error.key, error.message))
            else:
                outcomes.append(("launched", ""))

    _run_until_locked([threading.Thread(target=run)])
    return outcomes[0]


@pytest.mark.parametrize("is_launched_now", [True, False])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "status = 'draft', scheduled_at = null",
            "This campaign has been unscheduled since you opened this page. Review it before you launch it.",
        ),
        ("status = 'cancelled', cancelled_at = now()", "cancelled"),
    ],
)
def test_a_campaign_unscheduled_or_cancelled_during_its_launch_is_not_launched(
    app: Flask, make_offer: Callable[..., Offer], change: str, message: str, is_launched_now: bool
) -> None:
    create_customers(1)
    offer = make_offer(ends_at=None)
    at = datetime.now(UTC) + timedelta(days=1)
    campaign_id = launch_actions.launch_announcement(offer.id, "tests", at).campaign.id

    def launch() -> object:
        if is_launched_now:
            return launch_actions.launch_campaign(campaign_id, "mia", expected_status="scheduled")
        return launch_actions.schedule_campaign(campaign_id, at + timedelta(days=1), "mia", expected_status="scheduled")

    db.session.execute(text("select from offer for update"))
    db.session.execute(text(f"update campaign set {change}"))
    key, shown = _run_until_commit(app, launch)

    assert (key, message in shown) == ("conflict", True)
    campaign = campaign_queries.get_campaign(campaign_id)
    assert (campaign.status in ("draft", "cancelled"), campaign.launched_at) == (True, None)
    db.session.refresh(offer)
    assert offer.frozen_at is None


def test_a_save_during_another_one_is_a_conflict(app: Flask, make_offer: Callable[..., Offer]) -> None:
    draft = draft_actions.save_offer_draft(make_offer().id, EmailContent("First", "Text"), "resend", "tests")
    draft_id, version = draft.id, draft_versions.draft_version(draft)
    db.session.execute(text("update campaign set subject = 'Hers'"))

    key, message = _run_until_commit(
        app, lambda: draft_actions.update_draft(draft_id, EmailContent("Mine", "Text"), "resend", "mia", version)
    )

    assert (key, "Nothing was saved" in message) == ("conflict", True)
    assert campaign_queries.get_campaign(draft_id).subject == "Hers"


# --- pausing, resuming, cancelling --------------------------------------------------------------------


@pytest.fixture
def sending(app: Flask, make_offer: Callable[..., Offer]) -> Campaign:
    create_customers(3)
    campaign = launch_actions.launch_announcement(make_offer().id, "tests").campaign
    preparation.prepare_campaign(campaign.id)
    db.session.refresh(campaign)
    return campaign


def test_pausing_a_paused_campaign_changes_nothing(sending: Campaign) -> None:
    transitions.pause_campaign(sending.id, "mia")
    assert transitions.pause_campaign(sending.id, "tom").pause_reason == "paused by mia"
    pauses = select(AuditEntry.actor).where(AuditEntry.action == "campaign.paused")
    assert db.session.scalars(pauses).all() == ["mia"]


def test_a_resumed_campaign_is_sending_again(sending: Campaign) -> None:
    transitions.pause_campaign(sending.id, "mia")
    huey.flush()
    resumed = transitions.resume_campaign(sending.id, "mia")
    assert (resumed.status, resumed.pause_reason) == ("sending", None)
    resumptions = select(AuditEntry.subject).where(AuditEntry.action == "campaign.resumed")
    assert db.session.scalars(resumptions).all() == [str(sending.id)]
    # Without a task, it would continue only after the next sweep.
    assert {task.name for task in huey.pending()} == {"send"}


def test_a_campaign_paused_during_preparation_is_prepared_after_resuming(
    app: Flask, make_offer: Callable[..., Offer]
) -> None:
    create_customers(3)
    campaign = launch_actions.launch_announcement(make_offer().id, "tests").campaign
    transitions.pause_campaign(campaign.id, "mia")
    preparation.prepare_campaign(campaign.id)
    assert db.session.execute(text("select count(*) from batch")).scalar() == 0
    assert transitions.resume_campaign(campaign.id, "mia").status == "preparing"
    preparation.prepare_campaign(campaign.id)
    db.session.refresh(campaign)
    assert (campaign.status, campaign.total) == ("sending", 3)


def test_the_rate_of_a_resumed_campaign_begins_again(sending: Campaign) -> None:
    db.session.execute(text("update campaign set sending_since = '2026-01-01 00:00Z', sent_before = 1"))
    db.session.execute(text("update batch set sent = 2, window_start = 2, window_end = 2"))
    db.session.commit()
    transitions.pause_campaign(sending.id, "mia")
    resumed = transitions.resume_campaign(sending.id, "mia")
    resumed_at = db.session.scalar(text("select max(at) from audit_entry where action = 'campaign.resumed'"))
    assert (resumed.sent_before, resumed.sending_since) == (2, resumed_at)


def test_a_stopping_worker_leaves_the_preparation_to_another(
    app: Flask, make_offer: Callable[..., Offer], monkeypatch: pytest.MonkeyPatch
) -> None:
    create_customers(3)
    campaign = launch_actions.launch_announcement(make_offer().id, "tests").campaign
    monkeypatch.setattr(task_queue, "stop_requested", threading.Event())
    task_queue.stop_requested.set()
    preparation.prepare_campaign(campaign.id)
    db.session.refresh(campaign)
    assert (campaign.status, campaign.total) == ("preparing", 0)
    task_queue.stop_requested.clear()
    preparation.prepare_campaign(campaign.id)
    db.session.refresh(campaign)
    assert (campaign.status, campaign.total) == ("sending", 3)


def test_two_campaigns_have_their_own_batches_and_totals(
    app: Flask, make_offer: Callable[..., Offer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparation, "AUDIENCE_CHUNK_SIZE", 2)
    create_customers(3)
    campaigns = [launch_actions.launch_announcement(make_offer(code).id, "tests").campaign for code in ("A1A", "B2B")]
    for campaign in campaigns:
        preparation.prepare_campaign(campaign.id)
    # Batches with low numbers are sent first, so each campaign begins with number 0.
    rows = db.session.execute(text("select campaign_id, seq from batch order by campaign_id, seq")).all()
    assert rows == [(campaign.id, seq) for campaign in campaigns for seq in (0, 1)]
    assert db.session.scalars(text("select total from campaign")).all() == [3, 3]


def test_a_cancelled_campaign_cannot_continue(sending: Campaign) -> None:
    assert transitions.cancel_campaign(sending.id, "mia").status == "cancelled"
    for action in (transitions.pause_campaign, transitions.resume_campaign):
        with pytest.raises(DomainError):
            action(sending.id, "mia")
    with pytest.raises(DomainError, match="was cancelled"):
        launch_actions.launch_campaign(sending.id, "mia")
    cancellation.clean_up_cancelled_campaigns()
    assert db.session.execute(text("select distinct status from batch")).scalars().all() == ["cancelled"]


def test_the_api_cannot_launch_a_cancelled_announcement_again(sending: Campaign) -> None:
    transitions.cancel_campaign(sending.id, "mia")
    with pytest.raises(DomainError, match="Create a new announcement"):
        launch_actions.launch_announcement(sending.offer_id, "API key shop")


def test_a_new_campaign_can_be_launched_after_a_cancellation(sending: Campaign) -> None:
    transitions.cancel_campaign(sending.id, "mia")
    draft_actions.save_offer_draft(sending.offer_id, EmailContent("New"), "resend", "mia")
    assert launch_actions.launch_announcement(sending.offer_id, "mia").changed


def test_a_draft_can_neither_be_paused_nor_cancelled(app: Flask, make_offer: Callable[..., Offer]) -> None:
    draft = draft_actions.save_offer_draft(make_offer().id, EmailContent(), "resend", "tests")
    for action in (transitions.pause_campaign, transitions.resume_campaign, transitions.cancel_campaign):
        with pytest.raises(DomainError):
            action(draft.id, "mia")


def test_retrying_without_failed_emails_is_refused(sending: Campaign) -> None:
    with pytest.raises(DomainError, match="no emails left"):
        delivery_actions.resend_deliveries(sending.id, DeliverySelection("failed"), "mia")
