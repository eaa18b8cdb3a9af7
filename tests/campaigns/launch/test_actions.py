"""Writing, launching, pausing: what people and programs may do with campaigns."""

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
from webapp.campaigns.content.placeholders import BODY_MAX, DEFAULT_SUBJECT, DEFAULT_TEXT, EmailContent
from webapp.campaigns.content.validation import validate_content
from webapp.campaigns.deliveries import actions as delivery_actions
from webapp.campaigns.deliveries.actions import DeliverySelection
from webapp.campaigns.drafts import actions as draft_actions
from webapp.campaigns.launch import actions as launch_actions
from webapp.campaigns.launch import cancellation, preparation, transitions
from webapp.campaigns.models import Campaign, decode_gaps
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


def wrong(mail: EmailContent) -> dict[str, str]:
    """The errors of a mail: field to sentence."""
    with pytest.raises(InvalidInput) as caught:
        validate_content(mail)
    return {error.field: error.message for error in caught.value.errors}


# --- the mail's own words ---------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["subject", "text", "html"])
def test_an_unknown_placeholder_is_named_at_its_field_with_those_there_are(field: str) -> None:
    sentence = wrong(EmailContent(**{field: "Hi {{ customer.shoe_size }}"}))[field]
    assert "{{ customer.shoe_size }}" in sentence
    assert "{{ customer.name }}, {{ customer.email }}" in sentence


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
def test_nothing_but_placeholders_is_understood(source: str) -> None:
    assert "Available placeholders" in wrong(EmailContent(text=source))["text"]


@pytest.mark.parametrize(
    "source", ["{{customer.name}}", "{{ customer.name or 'you' }}", "a { b } c", "<style>@media x{a{b:c}}</style>", ""]
)
def test_what_can_be_sent_is_taken(app: Flask, source: str) -> None:
    validate_content(EmailContent(html=source))


@pytest.mark.parametrize("subject", ["a\nb", "a\r\nBcc: eve@example.com"])
def test_a_subject_is_one_line(subject: str) -> None:
    assert wrong(EmailContent(subject=subject)) == {"subject": "The subject must be one line."}


def test_a_mail_that_mailboxes_would_cut_is_refused() -> None:
    assert "larger than 256 kB" in wrong(EmailContent(html="ß" * (BODY_MAX // 2 + 1)))["html"]


def test_characters_that_can_not_be_mailed_are_refused() -> None:
    assert set(wrong(EmailContent(subject="a\0", text="\ud800", html="\ue000"))) == {"subject", "text", "html"}


def test_the_default_mail_passes_its_own_check() -> None:
    validate_content(EmailContent(DEFAULT_SUBJECT, DEFAULT_TEXT))


# --- drafts -----------------------------------------------------------------------------------------


def test_an_offer_and_its_mail_are_made_together(app: Flask) -> None:
    offer = draft_actions.create_offer_with_announcement(VALUES, EmailContent("Hello", "Text"), "tests")
    draft = campaign_queries.find_announcement(offer.id)
    assert draft is not None
    assert (draft.status, draft.subject, draft.text) == ("draft", "Hello", "Text")


def test_a_wrong_mail_leaves_no_offer_behind_and_all_errors_come_at_once(app: Flask) -> None:
    with pytest.raises(InvalidInput) as caught:
        draft_actions.create_offer_with_announcement(
            replace(VALUES, name=""), EmailContent(text="{{ nothing }}"), "tests"
        )
    assert {error.field for error in caught.value.errors} == {"name", "mail.text"}
    with pytest.raises(InvalidInput):
        draft_actions.create_offer_with_announcement(VALUES, EmailContent(text="{{ nothing }}"), "tests")
    db.session.rollback()
    assert db.session.scalars(select(Offer)).all() == []


def test_a_draft_is_written_anew_in_its_place(app: Flask, offer: Callable[..., Offer]) -> None:
    row = offer()
    first = draft_actions.save_offer_draft(row.id, EmailContent("One"), "resend", "tests")
    second = draft_actions.save_offer_draft(row.id, EmailContent("Two"), "hold", "tests")
    assert (second.id, second.subject, second.uncertain_policy) == (first.id, "Two", "hold")


def test_a_launched_mail_can_not_be_rewritten(app: Flask, offer: Callable[..., Offer]) -> None:
    create_customers(1)
    row = offer()
    launch_actions.launch_announcement(row.id, "tests")
    with pytest.raises(DomainError, match="has been launched"):
        draft_actions.save_offer_draft(row.id, EmailContent("New"), "resend", "tests")


def test_a_mail_needs_an_offer(app: Flask) -> None:
    with pytest.raises(NotFound):
        draft_actions.save_offer_draft(99, EmailContent(), "resend", "tests")


# --- launching --------------------------------------------------------------------------------------


def test_a_launch_freezes_the_offer_and_is_on_the_trail(app: Flask, offer: Callable[..., Offer]) -> None:
    create_customers(1)
    row = offer()
    launched = launch_actions.launch_announcement(row.id, "mia@example.com")
    assert launched.changed
    assert (launched.campaign.status, launched.campaign.launched_by) == ("preparing", "mia@example.com")
    db.session.refresh(row)
    assert row.frozen_at is not None
    assert "campaign.launched" in db.session.scalars(select(AuditEntry.action)).all()


def test_a_second_launch_changes_nothing_and_says_so(app: Flask, offer: Callable[..., Offer]) -> None:
    create_customers(1)
    row = offer()
    first = launch_actions.launch_announcement(row.id, "one")
    second = launch_actions.launch_announcement(row.id, "two")
    assert (second.changed, second.campaign.id, second.campaign.launched_by) == (False, first.campaign.id, "one")


def test_launches_at_the_same_moment_make_one_campaign(app: Flask, offer: Callable[..., Offer]) -> None:
    create_customers(1)
    offer_id = offer().id
    changed: list[bool] = []
    threads = [threading.Thread(target=_launch, args=(app, offer_id, changed)) for _ in range(8)]
    _all_at_once(threads, lock=None)
    assert sorted(changed) == [False] * 7 + [True]
    assert len(campaign_queries.list_offer_campaigns(offer_id)) == 1


def test_launches_that_all_have_seen_the_draft_launch_it_once(app: Flask, offer: Callable[..., Offer]) -> None:
    create_customers(1)
    offer_id = offer().id
    draft = draft_actions.save_offer_draft(offer_id, EmailContent(), "resend", "tests")
    changed: list[bool] = []
    threads = [threading.Thread(target=_launch, args=(app, offer_id, changed)) for _ in range(6)]
    _all_at_once(threads, lock=draft.id)
    assert sorted(changed) == [False] * 5 + [True]


def _launch(app: Flask, offer_id: int, changed: list[bool]) -> None:
    with app.app_context():
        changed.append(launch_actions.launch_announcement(offer_id, "tests").changed)


def _all_at_once(threads: list[threading.Thread], lock: int | None) -> None:
    """Run threads; with a lock on a campaign's row, none of them goes on before all of them wait for it."""
    if lock is not None:
        db.session.execute(text("select 1 from campaign where id = :id for update"), {"id": lock})
        return _run_until_locked(threads)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return None


def _run_until_locked(threads: list[threading.Thread]) -> None:
    """Run threads against the locks this transaction holds, and commit it when all of them wait."""
    for thread in threads:
        thread.start()
    waiting = text(
        "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
    )
    while db.session.execute(waiting).scalar_one() < len(threads):
        time.sleep(0.01)
        db.session.execute(text("select pg_stat_clear_snapshot()"))
    db.session.commit()
    for thread in threads:
        thread.join()


def test_a_launch_rings_one_bell_and_a_second_one_none(app: Flask, offer: Callable[..., Offer]) -> None:
    create_customers(1)
    row = offer()
    launch_actions.launch_announcement(row.id, "tests")
    launch_actions.launch_announcement(row.id, "tests")
    assert huey.storage.queue_size() == 1


def test_a_launch_runs_the_same_statements_for_any_audience(app: Flask, offer: Callable[..., Offer]) -> None:
    def statements(code: str) -> list[str]:
        seen: list[str] = []

        def note(connection: object, cursor: object, statement: str, *rest: object) -> None:
            seen.append(statement)

        row = offer(code)
        event.listen(db.engine, "before_cursor_execute", note)
        try:
            launch_actions.launch_announcement(row.id, "tests")
        finally:
            event.remove(db.engine, "before_cursor_execute", note)
        return seen

    create_customers(10)
    few = statements("FEW10")
    db.session.execute(
        text(
            "insert into customer (email, email_as_given) select 'x' || g || '@example.com', '' "
            "from generate_series(1, 100000) g"
        )
    )
    db.session.commit()
    many = statements("MANY100000")
    assert many == few
    assert db.session.execute(text("select count(*) from batch")).scalar() == 0


@pytest.mark.parametrize("kind", ["no customers", "all unsubscribed", "all erased", "an empty list"])
def test_an_audience_without_anybody_to_mail_is_refused(app: Flask, offer: Callable[..., Offer], kind: str) -> None:
    values = {}
    ids = create_customers(3) if kind != "no customers" else []
    if kind == "all unsubscribed":
        db.session.execute(
            text("insert into suppression (email, reason, source) select email, 'unsubscribed', 'tests' from customer")
        )
    if kind == "all erased":
        for customer_id in ids:
            customer_actions.erase_customer(customer_id, by="tests")
    if kind == "an empty list":
        audience = Audience(name="Nobody")
        db.session.add(audience)
        db.session.flush()
        values["audience_id"] = audience.id
    db.session.commit()
    row = offer(**values)
    with pytest.raises(DomainError, match="There are no recipients") as caught:
        launch_actions.launch_announcement(row.id, "tests")
    assert caught.value.key == "audience_empty"
    db.session.refresh(row)
    assert row.frozen_at is None


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"ends_at": datetime.now(UTC) - timedelta(hours=1)}, "offer_expired"),
        ({"paused_at": datetime.now(UTC)}, "offer_paused"),
        ({"max_redemptions": 1, "redeemed": 1}, "offer_exhausted"),
    ],
)
def test_an_offer_whose_code_would_not_work_is_not_launched(
    app: Flask, offer: Callable[..., Offer], values: dict[str, object], key: str
) -> None:
    create_customers(1)
    row = offer(**values)
    with pytest.raises(DomainError) as caught:
        launch_actions.launch_announcement(row.id, "tests")
    assert caught.value.key == key


def test_an_offer_that_is_yet_to_start_can_be_launched(app: Flask, offer: Callable[..., Offer]) -> None:
    create_customers(1)
    assert launch_actions.launch_announcement(
        offer(starts_at=datetime.now(UTC) + timedelta(days=1)).id, "tests"
    ).changed


def test_only_the_offers_audience_is_mailed_as_it_was_at_the_launch(app: Flask, offer: Callable[..., Offer]) -> None:
    ids = create_customers(4)
    audience = Audience(name="Two")
    db.session.add(audience)
    db.session.flush()
    db.session.execute(
        text("insert into audience_member (audience_id, customer_id) select :a, unnest(cast(:ids as bigint[]))"),
        {"a": audience.id, "ids": ids[1:3]},
    )
    row = offer(audience_id=audience.id)
    campaign = launch_actions.launch_announcement(row.id, "tests").campaign
    row.audience_id = None
    db.session.commit()
    preparation.prepare_campaign(campaign.id)
    assert decode_gaps(db.session.execute(text("select gaps from batch")).scalar() or []) == ids[1:3]


def test_a_launch_mails_the_audience_of_an_edit_that_came_first(app: Flask, offer: Callable[..., Offer]) -> None:
    create_customers(1)
    audience = Audience(name="Everyone but new")
    db.session.add(audience)
    db.session.flush()
    db.session.execute(text("insert into audience_member select :id, id from customer"), {"id": audience.id})
    row = offer()
    draft_actions.save_offer_draft(row.id, EmailContent(), "resend", "tests")
    offer_id, audience_id = row.id, audience.id
    assert _launched_during(app, offer_id, f"audience_id = {audience_id}") == "launched"
    campaign = campaign_queries.find_announcement(offer_id)
    assert campaign is not None
    assert campaign.audience_id == audience_id


@pytest.mark.parametrize(
    ("edit", "key"), [("paused_at = now()", "offer_paused"), ("ends_at = now() - interval '1 hour'", "offer_expired")]
)
def test_an_offer_stopped_at_the_moment_of_its_launch_is_not_launched(
    app: Flask, offer: Callable[..., Offer], edit: str, key: str
) -> None:
    create_customers(1)
    row = offer()
    draft_actions.save_offer_draft(row.id, EmailContent(), "resend", "tests")
    assert _launched_during(app, row.id, edit) == key


def _launched_during(app: Flask, offer_id: int, edit: str) -> str:
    """What a launch says that comes while somebody's edit of the offer is not committed yet."""
    said: list[str] = []

    def launch() -> None:
        with app.app_context():
            try:
                launch_actions.launch_announcement(offer_id, "tests")
            except DomainError as error:
                said.append(error.key)
            else:
                said.append("launched")

    db.session.commit()
    db.session.execute(text(f"update offer set {edit} where id = :id"), {"id": offer_id})
    _run_until_locked([threading.Thread(target=launch)])
    return said[0]


# --- pausing and ending -------------------------------------------------------------------------------


@pytest.fixture
def sending(app: Flask, offer: Callable[..., Offer]) -> Campaign:
    create_customers(3)
    campaign = launch_actions.launch_announcement(offer().id, "tests").campaign
    preparation.prepare_campaign(campaign.id)
    db.session.refresh(campaign)
    return campaign


def test_pausing_twice_is_pausing_once(sending: Campaign) -> None:
    transitions.pause_campaign(sending.id, "mia")
    assert transitions.pause_campaign(sending.id, "tom").pause_reason == "paused by mia"


def test_a_resumed_campaign_is_sending_again(sending: Campaign) -> None:
    transitions.pause_campaign(sending.id, "mia")
    resumed = transitions.resume_campaign(sending.id, "mia")
    assert (resumed.status, resumed.pause_reason) == ("sending", None)


def test_a_campaign_paused_while_it_was_prepared_goes_on_being_prepared(
    app: Flask, offer: Callable[..., Offer]
) -> None:
    create_customers(3)
    campaign = launch_actions.launch_announcement(offer().id, "tests").campaign
    transitions.pause_campaign(campaign.id, "mia")
    preparation.prepare_campaign(campaign.id)
    assert db.session.execute(text("select count(*) from batch")).scalar() == 0
    assert transitions.resume_campaign(campaign.id, "mia").status == "preparing"
    preparation.prepare_campaign(campaign.id)
    db.session.refresh(campaign)
    assert (campaign.status, campaign.total) == ("sending", 3)


def test_a_cancelled_campaign_is_over(sending: Campaign) -> None:
    assert transitions.cancel_campaign(sending.id, "mia").status == "cancelled"
    for deed in (transitions.pause_campaign, transitions.resume_campaign):
        with pytest.raises(DomainError):
            deed(sending.id, "mia")
    with pytest.raises(DomainError, match="was cancelled"):
        launch_actions.launch_campaign(sending.id, "mia")
    cancellation.clean_up_cancelled_campaigns()
    assert db.session.execute(text("select distinct status from batch")).scalars().all() == ["cancelled"]


def test_a_machine_can_not_launch_anew_what_staff_cancelled(sending: Campaign) -> None:
    transitions.cancel_campaign(sending.id, "mia")
    with pytest.raises(DomainError, match="Create a new email"):
        launch_actions.launch_announcement(sending.offer_id, "key shop")


def test_a_new_mail_can_be_launched_after_a_cancellation(sending: Campaign) -> None:
    transitions.cancel_campaign(sending.id, "mia")
    draft_actions.save_offer_draft(sending.offer_id, EmailContent("New"), "resend", "mia")
    assert launch_actions.launch_announcement(sending.offer_id, "mia").changed


def test_a_draft_can_neither_be_paused_nor_cancelled(app: Flask, offer: Callable[..., Offer]) -> None:
    draft = draft_actions.save_offer_draft(offer().id, EmailContent(), "resend", "tests")
    for deed in (transitions.pause_campaign, transitions.resume_campaign, transitions.cancel_campaign):
        with pytest.raises(DomainError):
            deed(draft.id, "mia")


def test_there_is_nothing_to_send_again_where_all_went_out(sending: Campaign) -> None:
    with pytest.raises(DomainError, match="no emails left"):
        delivery_actions.retry_deliveries(sending.id, DeliverySelection("failed"), "mia")
