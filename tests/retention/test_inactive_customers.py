"""Which customers are inactive, and their erasure."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select, text

from tests.support.factories import MakeCustomer, MakeOffer
from tests.support.imports import ImportFileFixture
from tests.support.retention import (
    DAYS,
    OVER,
    UNDER,
    SetPeriods,
    age_customers,
    is_erased,
    load_runs,
    make_older,
    redeem,
    run_retention,
)
from tests.support.sql_statements import run_sql
from webapp.accounts.models import AuditEntry
from webapp.campaigns.launch import actions as launch_actions
from webapp.campaigns.launch import preparation
from webapp.campaigns.models import Campaign
from webapp.core.extensions import db
from webapp.customers import actions as customer_actions
from webapp.customers.models import Customer
from webapp.customers.validation import CustomerValues
from webapp.redemptions import rollback as redemption_rollback
from webapp.retention import inactive_customers


@pytest.mark.parametrize(
    ("age", "erased"),
    [
        (timedelta(days=DAYS + 7, minutes=5), True),
        # `active_at` is up to a week too early, so an earlier erasure could be too early.
        (timedelta(days=DAYS + 7, minutes=-5), False),
    ],
)
def test_inactive_customers_are_erased_after_their_period(
    make_customer: MakeCustomer, set_periods: SetPeriods, age: timedelta, erased: bool
) -> None:
    ada = make_customer()
    make_older(age, "customer", "active_at")
    set_periods(customers=DAYS)

    run_retention()

    assert is_erased(ada.id) is erased
    entries = db.session.execute(select(AuditEntry.actor, AuditEntry.action, AuditEntry.subject)).all()
    assert entries == ([("retention period", "customer.erased", f"customer {ada.id}")] if erased else [])
    assert load_runs() == {"customers": (int(erased), True)}


@pytest.mark.parametrize(("age", "erased"), [(OVER, True), (UNDER, False)])
@pytest.mark.parametrize("is_undone", [False, True])
def test_redemptions_count_as_activity(
    make_customer: MakeCustomer,
    make_offer: MakeOffer,
    set_periods: SetPeriods,
    age: timedelta,
    erased: bool,
    is_undone: bool,
) -> None:
    ada = make_customer()
    make_offer()
    redemption = redeem()
    if is_undone:
        redemption_rollback.roll_back_redemption(redemption.public_id, "mistake", by="tests")
        make_older(age, "rollback", "rolled_back_at")
        make_older(OVER, "rollback", "redeemed_at")
    else:
        make_older(age)
    age_customers()
    set_periods(customers=DAYS)

    run_retention()

    assert is_erased(ada.id) is erased


def test_the_last_of_several_redemptions_is_the_activity(
    make_customer: MakeCustomer, make_offer: MakeOffer, set_periods: SetPeriods
) -> None:
    ada = make_customer()
    for code in ("SUMMER25", "WINTER"):
        make_offer(code)
        redeem(code)
        make_older(UNDER if code == "WINTER" else OVER)
    age_customers()
    set_periods(customers=DAYS)

    run_retention()

    assert not is_erased(ada.id)


@pytest.mark.parametrize("days", [DAYS - 20, DAYS - 40], ids=["before the campaign", "after the campaign"])
def test_the_later_of_redemption_and_campaign_is_the_last_activity(
    make_customer: MakeCustomer, make_offer: MakeOffer, set_periods: SetPeriods, days: int
) -> None:
    ada = make_customer()
    campaign = launch_campaign(make_offer, timedelta(days=DAYS - 30))
    redeem()
    make_older(timedelta(days=days))
    age_customers()
    set_periods(customers=DAYS)

    run_retention()

    redeemed_at = db.session.scalars(text("select redeemed_at from redemption")).one()
    expected = max(redeemed_at, db.session.get_one(Campaign, campaign.id).launched_at)
    assert db.session.get_one(Customer, ada.id).active_at == expected


def launch_campaign(make_offer: MakeOffer, age: timedelta) -> Campaign:
    campaign = launch_actions.launch_announcement(make_offer().id, "tests").campaign
    preparation.prepare_campaign(campaign.id)
    run_sql("update campaign set launched_at = now() - cast(:age as interval)", age=age)
    return campaign


@pytest.mark.parametrize(
    ("age", "state", "erased"),
    [
        (OVER, None, True),
        (UNDER, None, False),
        (UNDER, "skipped", True),
        (UNDER, "failed", True),
        (UNDER, "left", False),
    ],
)
def test_campaign_emails_count_as_activity(
    make_customer: MakeCustomer,
    make_offer: MakeOffer,
    set_periods: SetPeriods,
    age: timedelta,
    state: str | None,
    erased: bool,
) -> None:
    make_customer("first@example.com")
    ada = make_customer()
    make_customer("last@example.com")
    campaign = launch_campaign(make_offer, age)
    if state:
        run_sql(
            "insert into mail_issue (campaign_id, customer_id, state) values (:campaign, :customer, :state)",
            campaign=campaign.id,
            customer=ada.id,
            state=state,
        )
    age_customers()
    set_periods(customers=DAYS)

    run_retention()

    assert is_erased(ada.id) is erased


def test_a_campaign_does_not_count_for_customers_who_are_no_recipients(
    make_customer: MakeCustomer, make_offer: MakeOffer, set_periods: SetPeriods
) -> None:
    recipients = [
        make_customer("first@example.com"),
        make_customer("second@example.com"),
        make_customer("c@example.com"),
    ]
    launch_campaign(make_offer, UNDER)
    # The second one is within the range of the batch, but no recipient.
    run_sql("update batch set gaps = array[1, 2]")
    late = make_customer("late@example.com")
    age_customers()
    set_periods(customers=DAYS)

    run_retention()

    assert [is_erased(customer.id) for customer in (*recipients, late)] == [False, True, False, True]


@pytest.mark.parametrize("other", ["customer", "campaign"])
def test_only_a_failed_email_of_the_same_customer_and_campaign_is_no_activity(
    make_customer: MakeCustomer, make_offer: MakeOffer, set_periods: SetPeriods, other: str
) -> None:
    ada, bob = make_customer("ada@example.com"), make_customer("bob@example.com")
    launch_campaign(make_offer, UNDER)
    failed = (1, bob.id) if other == "customer" else (2, ada.id)
    if other == "campaign":
        launch_actions.launch_announcement(make_offer("WINTER").id, "tests")
        preparation.prepare_campaign(2)
        run_sql("update campaign set launched_at = now() - cast(:age as interval) where id = 2", age=OVER)
    run_sql(
        "insert into mail_issue (campaign_id, customer_id, state) values (:campaign, :customer, 'failed')",
        campaign=failed[0],
        customer=failed[1],
    )
    age_customers()
    set_periods(customers=DAYS)

    run_retention()

    assert [is_erased(ada.id), is_erased(bob.id)] == [False, other == "customer"]


def test_customers_are_erased_in_chunks(
    make_customer: MakeCustomer, set_periods: SetPeriods, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inactive_customers, "CUSTOMERS_PER_CHUNK", 2)
    ids = [make_customer(f"c{number}@example.com").id for number in range(5)]
    age_customers()
    set_periods(customers=DAYS)

    run_retention()

    assert [is_erased(customer_id) for customer_id in ids] == [True] * 5
    assert load_runs() == {"customers": (5, True)}


def test_the_newest_campaign_of_each_recipient_is_the_last_activity(
    make_customer: MakeCustomer, make_offer: MakeOffer, set_periods: SetPeriods
) -> None:
    """All are recipients of a campaign, the second one only of the older campaign."""
    both, only_older = make_customer("first@example.com"), make_customer("second@example.com")
    launch_campaign(make_offer, UNDER)
    only_newer = make_customer("c@example.com")
    newer = launch_actions.launch_announcement(make_offer("AUTUMN25").id, "tests").campaign
    preparation.prepare_campaign(newer.id)
    run_sql("update batch set gaps = array[1, 2] where campaign_id = :id", id=newer.id)
    age_customers()
    set_periods(customers=DAYS)

    run_retention()

    db.session.rollback()
    launched = select(Campaign.launched_at).order_by(Campaign.id)
    older_at, newer_at = db.session.scalars(launched).all()
    active = [db.session.get_one(Customer, item.id).active_at for item in (both, only_older, only_newer)]
    assert active == [newer_at, older_at, newer_at]


def test_nothing_is_erased_while_a_campaign_is_being_prepared(
    make_customer: MakeCustomer, make_offer: MakeOffer, set_periods: SetPeriods
) -> None:
    ada = make_customer()
    launch_actions.launch_announcement(make_offer().id, "tests")
    age_customers()
    set_periods(customers=DAYS)

    run_retention()

    assert not is_erased(ada.id)


def edit(customer: Customer) -> None:
    values = CustomerValues(customer.email, customer.name, customer.locale, customer.source_id)
    customer_actions.update_customer(customer.id, values, [], by="tests")


def put(customer: Customer) -> None:
    customer_actions.upsert_customer(CustomerValues(customer.email, source_id="C-1"), None, by="tests")


@pytest.mark.parametrize("keep_active", [edit, put])
def test_editing_a_customer_counts_as_activity_even_without_a_change(
    make_customer: MakeCustomer, set_periods: SetPeriods, keep_active: Callable[[Customer], None]
) -> None:
    ada = make_customer("ada@example.com", source_id="C-1")
    age_customers()
    db.session.refresh(ada)
    keep_active(ada)
    set_periods(customers=DAYS)

    run_retention()

    assert not is_erased(ada.id)


@pytest.mark.parametrize("name", ["Ada Lovelace", "Ada King"])
def test_an_import_counts_as_activity_and_unchanged_rows_stay_unchanged(
    make_customer: MakeCustomer, set_periods: SetPeriods, import_file: ImportFileFixture, name: str
) -> None:
    ada, bob = make_customer("ada@example.com"), make_customer("bob@example.com")
    age_customers()
    done = import_file(f"email,name\nada@example.com,{name}\n")
    set_periods(customers=DAYS)

    run_retention()

    assert [is_erased(customer.id) for customer in (ada, bob)] == [False, True]
    assert (done.unchanged, done.updated) == ((1, 0) if name == "Ada Lovelace" else (0, 1))


def test_an_import_does_not_write_recently_active_customers(
    make_customer: MakeCustomer, import_file: ImportFileFixture
) -> None:
    make_customer("ada@example.com")
    version = text("select xmin::text from customer")
    before = db.session.scalar(version)
    db.session.rollback()

    import_file("email,name\nada@example.com,Ada Lovelace\n")

    assert db.session.scalar(version) == before


@pytest.mark.parametrize("days", [-DAYS, 0, 6, 8])
def test_only_customers_inactive_for_a_week_longer_are_erased(make_customer: MakeCustomer, days: int) -> None:
    since = datetime.now(UTC) - timedelta(days=DAYS)
    ada = make_customer(active_at=since - timedelta(days=days))

    # `active_at` is up to a week too early.
    is_inactive = days > 7
    assert customer_actions.erase_customer(ada.id, by="tests", if_inactive_since=since) is is_inactive
    assert is_erased(ada.id) is is_inactive


def test_a_customer_who_becomes_active_during_a_run_is_kept(make_customer: MakeCustomer) -> None:
    ada, bob = make_customer("ada@example.com"), make_customer("bob@example.com")
    age_customers()
    steps = inactive_customers.erase_inactive_customers(DAYS)
    next(steps)
    db.session.commit()

    edit(db.session.get_one(Customer, bob.id))

    assert (sum(steps), is_erased(ada.id), is_erased(bob.id)) == (1, True, False)


def test_customers_are_checked_again_only_when_their_activity_is_old(
    make_customer: MakeCustomer, make_offer: MakeOffer, set_periods: SetPeriods
) -> None:
    make_customer()
    make_offer()
    redeem()
    make_older(UNDER)
    age_customers()
    set_periods(customers=DAYS)
    run_retention()

    db.session.rollback()
    assert inactive_customers.count_candidates(DAYS, 10) == 0
