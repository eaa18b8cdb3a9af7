"""Retention periods: what is deleted when, what stays, and how the work is divided."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from flask import Flask, current_app
from flask.testing import FlaskClient
from sqlalchemy import select, text

from tests.support.factories import MakeCustomer, MakeOffer
from tests.support.retention import (
    DAYS,
    OVER,
    UNDER,
    SetPeriods,
    add_audit_entry,
    age_customers,
    allow_another_run,
    is_erased,
    load_runs,
    make_older,
    redeem,
    run_retention,
    run_retention_without_rollbacks,
)
from tests.support.sql_statements import run_sql
from webapp.accounts import audit_retention
from webapp.accounts.models import AuditEntry
from webapp.campaigns import retention as campaign_retention
from webapp.campaigns import stats_queries
from webapp.campaigns.launch import actions as launch_actions
from webapp.campaigns.launch import preparation
from webapp.campaigns.models import Campaign
from webapp.core import task_queue
from webapp.core.extensions import db
from webapp.offers.models import OfferCounter
from webapp.redemptions import count_queries, group_commit
from webapp.redemptions import queries as redemption_queries
from webapp.redemptions import retention as redemption_retention
from webapp.redemptions import rollback as redemption_rollback
from webapp.redemptions.errors import RedemptionRefused
from webapp.redemptions.models import EXPIRED_REASON
from webapp.redemptions.rules import RedemptionRequest
from webapp.retention import actions as retention_actions
from webapp.retention import queries as retention_queries
from webapp.retention.models import RetentionRun

# --- audit log ------------------------------------------------------------------------------------


def test_audit_entries_are_deleted_after_their_period(app: Flask, set_periods: SetPeriods) -> None:
    add_audit_entry(OVER, "old")
    add_audit_entry(UNDER, "young")
    set_periods(audit=DAYS)

    run_retention()

    assert db.session.scalars(select(AuditEntry.action)).all() == ["young"]
    assert load_runs() == {"audit": (1, True)}


def test_many_old_audit_entries_are_deleted_in_steps(
    app: Flask, set_periods: SetPeriods, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_retention, "ENTRIES_PER_STEP", 3)
    add_audit_entry(OVER, "old")
    # Their times are wrong: the entries after them are still deleted.
    for _ in range(4):
        add_audit_entry(-OVER, "future")
    for _ in range(7):
        add_audit_entry(OVER, "old")
    set_periods(audit=DAYS)

    run_retention()

    assert set(db.session.scalars(select(AuditEntry.action))) == {"future"}
    assert load_runs() == {"audit": (8, True)}


def test_the_count_of_old_audit_entries_is_bounded(app: Flask) -> None:
    for age in (OVER, OVER, OVER, UNDER):
        add_audit_entry(age)

    assert [audit_retention.count_old_audit_entries(DAYS, limit) for limit in (2, 10)] == [2, 3]


# --- redemptions ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("age", "is_cleared"), [(OVER, True), (UNDER, False)])
def test_the_data_sent_with_a_redemption_is_deleted_after_its_period(
    make_customer: MakeCustomer, make_offer: MakeOffer, set_periods: SetPeriods, age: timedelta, is_cleared: bool
) -> None:
    ada = make_customer()
    make_offer()
    redeem()
    make_older(age)
    set_periods(redemptions=DAYS)

    run_retention()

    row = redemption_queries.list_customer_redemptions(ada.id)[0].row
    sent = (row.order_metadata, row.idempotency_key, row.body_hash)
    assert (sent == (None, None, None)) is is_cleared
    assert (row.order_id, row.order_amount, row.discount_amount, row.channel) == ("A-1", 4999, 1250, "api")
    assert load_runs() == {"redemptions": (int(is_cleared), True)}


@pytest.mark.parametrize(("age", "is_cleared"), [(OVER, True), (UNDER, False)])
def test_the_data_and_reason_of_an_undone_redemption_are_deleted_after_its_period(
    make_customer: MakeCustomer, make_offer: MakeOffer, set_periods: SetPeriods, age: timedelta, is_cleared: bool
) -> None:
    ada = make_customer()
    make_offer()
    redemption_rollback.roll_back_redemption(redeem().public_id, "Ada called", by="eve@example.com")
    make_older(age, "rollback", "rolled_back_at")
    set_periods(redemptions=DAYS)

    run_retention()

    row = redemption_queries.list_customer_redemptions(ada.id)[0].row
    assert ("Ada called" not in (row.reason or "")) is is_cleared
    assert ((row.order_metadata, row.idempotency_key, row.body_hash) == (None, None, None)) is is_cleared
    assert (row.order_id, row.rolled_back_by) == ("A-1", "eve@example.com")


def test_the_reason_of_an_undone_redemption_without_other_data_is_deleted_once(
    make_customer: MakeCustomer, make_offer: MakeOffer, set_periods: SetPeriods
) -> None:
    make_customer(), make_offer()
    done = group_commit.redeem(RedemptionRequest(channel="form", code="SUMMER25", email="ada@example.com"))
    redemption_rollback.roll_back_redemption(done.public_id, "Ada called", by="tests")
    make_older(OVER, "rollback", "rolled_back_at")
    set_periods(redemptions=DAYS)

    run_retention()
    first_run = load_runs()
    allow_another_run()
    run_retention()

    assert db.session.scalars(text("select reason from rollback")).all() == [EXPIRED_REASON]
    assert (first_run, load_runs()) == ({"redemptions": (1, True)}, {"redemptions": (0, True)})


def test_limits_and_counts_stay_and_no_offer_is_redeemed_twice(
    make_customer: MakeCustomer, make_offer: MakeOffer, set_periods: SetPeriods
) -> None:
    make_customer()
    offer = make_offer(max_redemptions=1)
    redeem()
    make_older(OVER)
    task_queue.run("redemptions.count_hours")
    set_periods(redemptions=DAYS)

    run_retention()

    assert count_queries.count_redemptions([offer.id]) == {offer.id: 1}
    assert db.session.scalars(select(OfferCounter.redeemed)).one() == 1
    with pytest.raises(RedemptionRefused) as refusal:
        group_commit.redeem(RedemptionRequest(channel="form", code="SUMMER25", email="ada@example.com"))
    assert refusal.value.reason == "already_redeemed"


def test_old_redemptions_are_read_once(
    make_customer: MakeCustomer, make_offer: MakeOffer, set_periods: SetPeriods, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redemption_retention, "ROWS_PER_STEP", 2)
    for code in ("SUMMER25", "WINTER"):
        make_offer(code)
        for number in range(5):
            email = f"c{number}@example.com"
            if code == "SUMMER25":
                make_customer(email)
            redeem(code, email)
    # All at the same microsecond, which no step may split.
    run_sql("update redemption set redeemed_at = now() - cast(:age as interval)", age=OVER)
    set_periods(redemptions=DAYS)

    run_retention()
    first_run = load_runs()
    allow_another_run()
    run_sql("update redemption set idempotency_key = 'written later'")
    run_retention()

    assert (first_run, load_runs()) == ({"redemptions": (10, True)}, {"redemptions": (0, True)})


def test_a_redemption_that_is_locked_does_not_stop_the_run(
    make_customer: MakeCustomer, make_offer: MakeOffer, set_periods: SetPeriods
) -> None:
    for number in range(2):
        make_customer(f"c{number}@example.com")
        if number == 0:
            make_offer()
        redeem(email=f"c{number}@example.com")
    make_older(OVER)
    set_periods(redemptions=DAYS)
    with db.engine.connect() as other:
        other.execute(text("select from redemption where customer_id = 1 for update"))

        run_retention()

        assert load_runs() == {"redemptions": (1, True)}
    # The other transaction has changed nothing, so the next run clears the row.
    allow_another_run()

    run_retention()

    assert load_runs() == {"redemptions": (1, True)}


# --- replies of mail servers ----------------------------------------------------------------------

REPLIES = [
    # (state, smtp_code, text, shortened text)
    ("failed", 550, "5.1.1 <c1@example.com>: unknown", "5.1.1"),
    ("failed", 550, "No such user c1@example.com", ""),
    ("failed", None, "bounced: 5.2.2 <c1@example.com> full", "bounced: 5.2.2"),
    ("failed", None, "bounced: c1@example.com is gone", "bounced:"),
    ("failed", None, "the address has invalid characters", "the address has invalid characters"),
    ("skipped", None, "unsubscribed", "unsubscribed"),
    ("left", None, "sending was interrupted; dismissed by eve@example.com", ""),
]


@pytest.fixture
def ended_campaign(app: Flask, make_offer: MakeOffer, make_customer: MakeCustomer) -> Campaign:
    """A campaign that ended over `DAYS` days ago, with `REPLIES`."""
    make_customer()
    offer = make_offer()
    campaign = launch_actions.launch_announcement(offer.id, "tests").campaign
    preparation.prepare_campaign(campaign.id)
    for number, (state, code, reply, _) in enumerate(REPLIES, 1):
        db.session.execute(
            text(
                "insert into mail_issue (campaign_id, customer_id, state, smtp_code, text) "
                "values (:campaign, :customer, :state, :code, :reply)"
            ),
            {"campaign": campaign.id, "customer": number, "state": state, "code": code, "reply": reply},
        )
    run_sql("update campaign set status = 'done', finished_at = now() - cast(:age as interval)", age=OVER)
    return campaign


def stored_replies() -> list[str]:
    return list(db.session.scalars(text("select text from mail_issue order by customer_id")))


def test_replies_are_shortened_after_their_period(
    ended_campaign: Campaign, set_periods: SetPeriods, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(campaign_retention, "ROWS_PER_STEP", 2)
    before = stats_queries.get_campaign_stats(ended_campaign.id)
    causes = select(text("campaign_id, smtp_code, cause from mail_issue where smtp_code is not null order by 2, 3"))
    causes_before = db.session.execute(causes).all()
    set_periods(deliveries=DAYS)

    run_retention()

    assert stored_replies() == [shortened for *_, shortened in REPLIES]
    assert stats_queries.get_campaign_stats(ended_campaign.id).failed == before.failed
    assert db.session.execute(causes).all() == causes_before
    assert load_runs() == {"deliveries": (5, True)}


@pytest.mark.parametrize(
    "change",
    [
        "finished_at = now() - cast(:under as interval)",
        "status = 'sending'",
        "status = 'paused'",
        "status = 'cancelled', cancelled_at = now() - cast(:under as interval)",
    ],
)
def test_replies_of_open_and_recent_campaigns_stay(
    ended_campaign: Campaign, set_periods: SetPeriods, change: str
) -> None:
    run_sql(f"update campaign set {change}, mails_again = :under is null", under=UNDER)
    set_periods(deliveries=DAYS)

    run_retention()

    assert stored_replies() == [reply for _, _, reply, _ in REPLIES]


def test_a_campaign_that_was_resent_is_shortened_again(ended_campaign: Campaign, set_periods: SetPeriods) -> None:
    set_periods(deliveries=DAYS)
    run_retention()
    run_sql("update mail_issue set text = '5.1.1 ada@example.com' where customer_id = 1")
    allow_another_run()
    run_retention()
    unchanged = stored_replies()[0]
    run_sql("update campaign set replies_cleared_at = finished_at - interval '1 day'")
    allow_another_run()

    run_retention()

    assert (unchanged, stored_replies()[0]) == ("5.1.1 ada@example.com", "5.1.1")


def test_replies_of_another_campaign_to_the_same_customers_stay(
    ended_campaign: Campaign, set_periods: SetPeriods, make_offer: MakeOffer
) -> None:
    other = launch_actions.launch_announcement(make_offer("WINTER").id, "tests").campaign
    run_sql(
        "insert into mail_issue (campaign_id, customer_id, state, smtp_code, text) "
        "select :other, customer_id, 'failed', 550, '5.1.1 recent' from mail_issue",
        other=other.id,
    )
    run_sql(
        "update campaign set status = 'done', finished_at = now() - cast(:age as interval) where id = :other",
        age=UNDER,
        other=other.id,
    )
    set_periods(deliveries=DAYS)

    run_retention()

    by_campaign = {
        ended_campaign.id: [shortened for *_, shortened in REPLIES],
        other.id: ["5.1.1 recent"] * len(REPLIES),
    }
    for campaign_id, replies in by_campaign.items():
        stored = text("select text from mail_issue where campaign_id = :id order by customer_id")
        assert db.session.scalars(stored, {"id": campaign_id}).all() == replies
    cleared = text("select id from campaign where replies_cleared_at is not null")
    assert db.session.scalars(cleared).all() == [ended_campaign.id]


# --- runs -----------------------------------------------------------------------------------------


def test_nothing_is_deleted_without_a_period(make_customer: MakeCustomer, make_offer: MakeOffer) -> None:
    ada = make_customer()
    make_offer()
    redeem()
    make_older(timedelta(days=5000))
    age_customers()
    add_audit_entry(timedelta(days=5000))

    run_retention()

    assert load_runs() == {}
    assert not is_erased(ada.id)
    assert redemption_queries.list_customer_redemptions(ada.id)[0].row.idempotency_key == "key"


def test_a_kind_of_data_runs_once_an_hour(app: Flask, set_periods: SetPeriods) -> None:
    set_periods(audit=DAYS)
    run_retention()
    add_audit_entry(OVER)

    run_retention()
    within_the_hour = load_runs()
    allow_another_run()
    run_retention()

    assert (within_the_hour, load_runs()) == ({"audit": (0, True)}, {"audit": (1, True)})


def test_a_run_that_exceeds_its_time_continues_soon(
    app: Flask, set_periods: SetPeriods, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_retention, "ENTRIES_PER_STEP", 1)
    add_audit_entry(OVER)
    add_audit_entry(OVER)
    set_periods(audit=DAYS)
    # The clock is read for the deadline, before the run, and after each step.
    times = iter([0.0, 0.0, retention_actions.TIME_BUDGET])
    with monkeypatch.context() as clock:
        clock.setattr(retention_actions, "time", SimpleNamespace(monotonic=lambda: next(times)))
        run_retention()
    first_run = load_runs()
    run_retention()
    too_soon = load_runs()
    run_sql("update retention_run set started_at = now() - interval '1 minute'")
    run_retention()

    assert (first_run, too_soon) == ({"audit": (1, False)},) * 2
    assert load_runs() == {"audit": (1, True)}
    assert db.session.scalars(select(RetentionRun.removed_in_total)).one() == 2


def test_a_run_that_failed_is_repeated_soon(make_customer: MakeCustomer, set_periods: SetPeriods) -> None:
    set_periods(customers=DAYS)
    run_retention()
    allow_another_run()
    make_customer()
    age_customers()
    run_retention_without_rollbacks()
    failed = db.session.execute(select(RetentionRun.finished_at, RetentionRun.is_complete)).one()
    run_sql("update retention_run set started_at = now() - interval '1 minute'")

    run_retention()

    assert failed == (None, False)
    assert load_runs() == {"customers": (1, True)}


def test_a_kind_of_data_with_much_to_delete_leaves_time_for_the_others(
    make_customer: MakeCustomer, set_periods: SetPeriods, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(10):
        make_customer(f"c{number}@example.com")
    age_customers()
    add_audit_entry(OVER)
    set_periods(customers=DAYS, audit=DAYS)
    # Each reading of the clock takes a fifth of the time of a run.
    clock = itertools.count(0, retention_actions.TIME_BUDGET / 5)
    with monkeypatch.context() as patch:
        patch.setattr(retention_actions, "time", SimpleNamespace(monotonic=lambda: next(clock)))
        run_retention()

    assert {kind: removed for kind, (removed, _is_complete) in load_runs().items()} == {"customers": 1, "audit": 1}


def test_a_kind_of_data_that_fails_does_not_keep_the_others_from_running(
    make_customer: MakeCustomer, set_periods: SetPeriods, caplog: pytest.LogCaptureFixture
) -> None:
    make_customer()
    age_customers()
    add_audit_entry(OVER)
    set_periods(customers=DAYS, audit=DAYS)
    run_retention_without_rollbacks()

    assert load_runs() == {"customers": (0, False), "audit": (1, True)}
    assert "retention of customers failed" in caplog.text


def test_a_run_stops_with_its_worker(app: Flask, set_periods: SetPeriods, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_retention, "ENTRIES_PER_STEP", 1)
    add_audit_entry(OVER)
    add_audit_entry(OVER)
    set_periods(audit=DAYS)
    monkeypatch.setattr(task_queue, "stop_requested", threading.Event())
    task_queue.stop_requested.set()

    run_retention()

    assert load_runs() == {"audit": (1, False)}


def test_concurrent_workers_run_it_once(app: Flask, set_periods: SetPeriods, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(20):
        add_audit_entry(OVER)
    set_periods(audit=DAYS)
    app_object: Any = current_app._get_current_object()  # type: ignore[attr-defined]
    start = threading.Barrier(4)

    def work() -> None:
        with app_object.app_context():
            start.wait()
            retention_actions.apply_retention_periods()

    threads = [threading.Thread(target=work) for _ in range(4)]
    with caplog.at_level("INFO", logger="webapp.retention.actions"):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert load_runs() == {"audit": (20, True)}
    assert [record.getMessage() for record in caplog.records] == ["retention: 20 audit removed"]


# --- the page -------------------------------------------------------------------------------------


def test_the_page_shows_periods_and_what_is_due(
    sign_in: Callable[..., FlaskClient], set_periods: SetPeriods, make_customer: MakeCustomer
) -> None:
    make_customer()
    age_customers()
    add_audit_entry(OVER)
    set_periods(customers=365, audit=DAYS)
    staff = sign_in("manager")

    before = staff.get("/settings/privacy").text
    run_retention()
    after = staff.get("/settings/privacy").text

    assert all(part in before for part in ("365 days", "100 days", "No limit", "RETENTION_AUDIT_DAYS"))
    assert "1 customer is checked for activity next." in before
    assert "1 entry is due." in before
    assert "1 removed, 1 in total" in after
    assert "Nothing is due." in after


def test_the_page_counts_only_up_to_a_limit_and_says_what_continues(
    staff: FlaskClient, set_periods: SetPeriods, make_customer: MakeCustomer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention_queries, "MAX_DUE_COUNT", 2)
    for number in range(3):
        make_customer(f"c{number}@example.com")
    age_customers()
    add_audit_entry(OVER)
    add_audit_entry(OVER)
    add_audit_entry(OVER)
    set_periods(customers=DAYS, audit=DAYS)
    for kind, is_complete in (("customers", False), ("audit", True)):
        run_sql(
            "insert into retention_run (kind, started_at, finished_at, is_complete) "
            "values (:kind, now(), now(), :done)",
            kind=kind,
            done=is_complete,
        )

    page = staff.get("/settings/privacy").text

    assert [status.due for status in retention_queries.list_retention_statuses()] == [2, 0, 0, 2]
    assert "more than 2 customers are checked for activity next." in page
    customers, audit = page.partition("RETENTION_CUSTOMER_DAYS")[2].split("RETENTION_AUDIT_DAYS")
    assert ["It continues within a minute." in part for part in (customers, audit)] == [True, False]


def test_viewers_do_not_see_the_page(sign_in: Callable[..., FlaskClient]) -> None:
    viewer = sign_in("viewer")

    assert viewer.get("/settings/privacy").status_code == 403
    assert "/settings/privacy" not in viewer.get("/settings/profile").text


def test_the_status_counts_what_the_next_run_reads(
    make_customer: MakeCustomer, make_offer: MakeOffer, set_periods: SetPeriods, ended_campaign: Campaign
) -> None:
    make_customer("bob@example.com")
    redemption_rollback.roll_back_redemption(redeem(email="bob@example.com").public_id, "Bob called", by="tests")
    redeem()
    make_older(OVER)
    make_older(OVER, "rollback", "rolled_back_at")
    set_periods(redemptions=DAYS, deliveries=DAYS)

    before = {status.kind: status.due for status in retention_queries.list_retention_statuses()}
    db.session.rollback()
    run_retention()
    after = {status.kind: status.due for status in retention_queries.list_retention_statuses()}

    assert before == {"customers": 0, "redemptions": 2, "deliveries": 1, "audit": 0}
    assert after == dict.fromkeys(before, 0)
