"""Redeeming, rolling back, hourly counts and lists of redemptions."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import text

from tests.support.factories import MakeCustomer, MakeOffer
from tests.support.redemptions import (
    ROLLBACK,
    count_lock_waiters,
    count_redemptions,
    redeemed_counter,
    refusal_key,
    run_concurrently,
)
from webapp.core import task_queue
from webapp.core.errors import DomainError, InvalidInput, NotFound
from webapp.core.extensions import db
from webapp.core.money import Discount
from webapp.customers import actions as customer_actions
from webapp.customers.models import Audience, AudienceMember
from webapp.offers import actions as offer_actions
from webapp.redemptions import actions as redemption_actions
from webapp.redemptions import count_queries, export_actions, group_commit, hourly_counts, personal_codes
from webapp.redemptions import queries as redemption_queries
from webapp.redemptions import rollback as redemption_rollback
from webapp.redemptions.queries import KeysetCursor, RedemptionFilter, RedemptionRecord
from webapp.redemptions.rules import Order, RedemptionRequest

ADA = RedemptionRequest(channel="form", code="SUMMER25", email="ada@example.com")


def test_a_redemption_is_stored(make_offer: MakeOffer, make_customer: MakeCustomer) -> None:
    make_offer(), make_customer()

    redemption = group_commit.redeem(ADA)

    assert (redemption.code, redemption.offer_name, redemption.email, redemption.is_replay) == (
        "SUMMER25",
        "Summer",
        "ada@example.com",
        False,
    )
    assert redemption.discount == Discount("percent", percent=Decimal(25))
    assert count_redemptions() == 1


def test_the_returned_redemption_is_the_stored_one(make_offer: MakeOffer, make_customer: MakeCustomer) -> None:
    make_offer("Summer-25", time_zone="Asia/Tokyo"), make_customer("Ada@example.com", locale="de")
    request = replace(ADA, order=Order("A-1", 4999, "EUR"), metadata={"till": 7}, channel="api", api_key_id=1)

    redemption = group_commit.redeem(request)

    found = redemption_queries.find_redemption(redemption.public_id)
    assert found is not None
    assert replace(found, customer_name="") == redemption
    assert (redemption.code, redemption.time_zone, redemption.customer_locale) == ("Summer-25", "Asia/Tokyo", "de")
    assert (found.row.discount_amount, found.row.order_metadata) == (1250, {"till": 7})


def test_a_second_redemption_is_refused(make_offer: MakeOffer, make_customer: MakeCustomer) -> None:
    make_offer(), make_customer()
    group_commit.redeem(ADA)

    assert refusal_key(ADA) == "already_redeemed"
    assert count_redemptions() == 1


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"starts_at": datetime(2099, 1, 1, tzinfo=UTC), "ends_at": None}, "offer_not_started"),
        (
            {"starts_at": datetime(2020, 1, 1, tzinfo=UTC), "ends_at": datetime(2021, 1, 1, tzinfo=UTC)},
            "offer_expired",
        ),
        ({"paused_at": datetime(2020, 1, 1, tzinfo=UTC)}, "offer_paused"),
        ({"personal_code_required": True}, "personal_code_required"),
        ({"max_redemptions": 1, "redeemed": 1}, "offer_exhausted"),
    ],
)
def test_a_refusal_has_a_reason_and_stores_nothing(
    make_offer: MakeOffer, make_customer: MakeCustomer, values: dict[str, Any], reason: str
) -> None:
    offer = make_offer(**values)
    make_customer()

    assert refusal_key(ADA) == reason
    assert count_redemptions() == 0
    assert redeemed_counter(offer.id) == values.get("redeemed", 0)


def test_an_unknown_code_and_an_unknown_customer_are_refused(
    make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    make_offer(), make_customer()

    assert refusal_key(replace(ADA, code="WINTER")) == "not_found"
    assert refusal_key(replace(ADA, email="bob@example.com")) == "customer_unknown"


def test_an_erased_customer_is_unknown(make_offer: MakeOffer, make_customer: MakeCustomer) -> None:
    offer, erased = make_offer(), make_customer()
    customer_actions.erase_customer(erased.id, by="tests")

    assert (
        refusal_key(RedemptionRequest(channel="link", offer_id=offer.id, customer_id=erased.id)) == "customer_unknown"
    )


def test_only_members_of_the_audience_may_redeem(make_offer: MakeOffer, make_customer: MakeCustomer) -> None:
    audience = Audience(name="Regulars")
    db.session.add(audience)
    db.session.flush()
    make_offer(audience_id=audience.id)
    ada = make_customer()
    assert refusal_key(ADA) == "customer_not_eligible"
    db.session.add(AudienceMember(audience_id=audience.id, customer_id=ada.id))
    db.session.commit()

    assert group_commit.redeem(ADA).customer_id == ada.id


def test_a_customer_is_found_by_source_id(make_offer: MakeOffer, make_customer: MakeCustomer) -> None:
    make_offer()
    ada = make_customer(source_id="C-1")

    assert group_commit.redeem(RedemptionRequest(channel="api", code="SUMMER25", source_id="C-1")).customer_id == ada.id


def test_a_personal_code_works_only_for_its_customer(make_offer: MakeOffer, make_customer: MakeCustomer) -> None:
    offer = make_offer(personal_code_required=True)
    ada = make_customer()
    make_customer("bob@example.com")
    code = personal_codes.derive_personal_code("SUMMER25", offer.id, ada.id).replace("-", "")

    assert refusal_key(replace(ADA, code=code, email="bob@example.com")) == "personal_code_required"
    assert group_commit.redeem(replace(ADA, code=code)).customer_id == ada.id


def test_a_wrong_personal_code_is_refused_even_if_none_is_required(
    make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    make_offer(), make_customer()

    assert refusal_key(replace(ADA, code="SUMMER25AAAAAAAA")) == "personal_code_required"


def test_an_exact_shared_code_takes_precedence_over_a_personal_code(
    make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    offer, ada = make_offer(), make_customer()
    clash = personal_codes.derive_personal_code("SUMMER25", offer.id, ada.id)
    exact = make_offer(clash)

    assert group_commit.redeem(replace(ADA, code=exact.code)).offer_id == exact.id


def test_only_the_first_redemption_freezes_the_offer(make_offer: MakeOffer, make_customer: MakeCustomer) -> None:
    offer = make_offer()
    make_customer(), make_customer("bob@example.com")
    group_commit.redeem(ADA)
    db.session.refresh(offer)
    frozen_at, version = offer.frozen_at, db.session.execute(text("select xmin::text from offer")).scalar_one()
    group_commit.redeem(replace(ADA, email="bob@example.com"))

    assert frozen_at is not None
    assert db.session.execute(text("select xmin::text from offer")).scalar_one() == version


def test_a_refusal_does_not_freeze_the_offer(make_offer: MakeOffer) -> None:
    offer = make_offer()
    refusal_key(ADA)

    db.session.refresh(offer)
    assert offer.frozen_at is None


def test_the_cap_is_not_exceeded(make_offer: MakeOffer, make_customer: MakeCustomer) -> None:
    offer = make_offer(max_redemptions=2)
    emails = [make_customer(f"c{n}@example.com").email for n in range(3)]

    results = [group_commit.redeem(replace(ADA, email=email)).email for email in emails[:2]]

    assert results == emails[:2]
    assert refusal_key(replace(ADA, email=emails[2])) == "offer_exhausted"
    assert (count_redemptions(), redeemed_counter(offer.id)) == (2, 2)


def test_a_raised_cap_allows_more_redemptions(make_offer: MakeOffer, make_customer: MakeCustomer) -> None:
    offer = make_offer(max_redemptions=1)
    make_customer(), make_customer("bob@example.com")
    group_commit.redeem(ADA)
    offer_actions.update_offer(offer.id, {"max_redemptions": 2}, version=None, by="ann")

    assert group_commit.redeem(replace(ADA, email="bob@example.com")).is_replay is False


@pytest.mark.parametrize("taken", [3, 5])
def test_a_batch_waits_for_an_uncommitted_change_of_the_counter(
    app: Flask, make_offer: MakeOffer, make_customer: MakeCustomer, taken: int
) -> None:
    """The batch needs more than the cap allows after the other transaction commits."""
    row = make_offer(max_redemptions=10, redeemed=5, frozen_at=datetime(2026, 1, 1, tzinfo=UTC))
    requests = [replace(ADA, email=make_customer(f"c{n}@example.com").email) for n in range(6)]
    results: list[Any] = []

    def redeem_all() -> None:
        with app.app_context():
            results.extend(redemption_actions.redeem_all(requests))

    batch = threading.Thread(target=redeem_all)
    with db.engine.connect() as other:
        other.execute(text("update offer_counter set redeemed = redeemed + :taken"), {"taken": taken})
        batch.start()
        while batch.is_alive() and not count_lock_waiters("transactionid"):
            db.session.rollback()
        other.commit()
    batch.join()

    left = 5 - taken
    expected = ["redeemed"] * left + ["offer_exhausted"] * (6 - left)
    assert [getattr(result, "reason", "redeemed") for result in results] == expected
    assert (redeemed_counter(row.id), count_redemptions()) == (10, left)


def test_batch_results_are_in_order_and_the_first_requests_get_the_cap(
    make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    capped, free = make_offer("CAPPED", max_redemptions=2), make_offer("FREE")
    emails = [make_customer(f"c{n}@example.com").email for n in range(4)][::-1]
    requests = [
        RedemptionRequest(channel="api", code=code, email=email) for email in emails for code in ("CAPPED", "FREE")
    ]
    requests.append(RedemptionRequest(channel="api", code="CAPPED", email="nobody@example.com"))
    requests.append(requests[0])

    results = redemption_actions.redeem_all(requests)

    outcomes = ["redeemed" if isinstance(a, RedemptionRecord) else a.key for a in results]
    assert outcomes == [
        *["redeemed"] * 4,
        *["offer_exhausted", "redeemed"] * 2,
        "customer_unknown",
        "already_redeemed",
    ]
    assert (redeemed_counter(capped.id), redeemed_counter(free.id), count_redemptions()) == (2, 0, 6)


def test_a_batch_may_freeze_more_offers_than_it_has_rounds(make_offer: MakeOffer, make_customer: MakeCustomer) -> None:
    make_customer()
    codes = [make_offer(f"CODE{n}").code for n in range(redemption_actions.MAX_ROUNDS + 1)]

    results = redemption_actions.redeem_all([replace(ADA, code=code) for code in codes])

    assert [result.code for result in results if isinstance(result, RedemptionRecord)] == codes


def test_an_order_in_another_currency_fails_alone_in_a_batch(
    make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    make_offer(discount_type="amount", amount=500, currency="EUR")
    make_customer(), make_customer("bob@example.com")
    bob = replace(ADA, email="bob@example.com")

    results = redemption_actions.redeem_all([replace(ADA, order=Order("A-1", 900, "USD")), bob])

    assert [type(result) for result in results] == [InvalidInput, RedemptionRecord]
    assert count_redemptions() == 1


API = replace(ADA, channel="api", api_key_id=1, idempotency_key="k1", body_hash=b"1", order=Order("A-1"))


@pytest.mark.parametrize("repeat", [API, replace(API, idempotency_key=None), replace(API, order=None)])
def test_a_repeated_request_returns_the_first_redemption(
    make_offer: MakeOffer, make_customer: MakeCustomer, repeat: RedemptionRequest
) -> None:
    make_offer(), make_customer()
    first = group_commit.redeem(API)

    repeated = group_commit.redeem(repeat)

    assert (repeated.is_replay, repeated.public_id) == (True, first.public_id)
    assert count_redemptions() == 1


def test_a_repeat_succeeds_after_the_offer_has_ended(make_offer: MakeOffer, make_customer: MakeCustomer) -> None:
    offer = make_offer(max_redemptions=1)
    make_customer()
    first = group_commit.redeem(API)
    offer_actions.update_offer(offer.id, {"ends_at": datetime.now(UTC) - timedelta(hours=1)}, version=None, by="ann")

    assert group_commit.redeem(API).public_id == first.public_id


def test_the_same_key_with_another_body_is_refused(make_offer: MakeOffer, make_customer: MakeCustomer) -> None:
    make_offer(), make_customer()
    group_commit.redeem(API)

    with pytest.raises(InvalidInput):
        group_commit.redeem(replace(API, body_hash=b"2"))


def test_concurrent_repeats_create_one_redemption(
    app: Flask, make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    offer = make_offer(max_redemptions=5)
    make_customer()

    results = run_concurrently(app, *[lambda: group_commit.redeem(API)] * 12)

    assert len({result.public_id for result in results}) == 1
    assert sum(not result.is_replay for result in results) == 1
    assert (count_redemptions(), redeemed_counter(offer.id)) == (1, 1)


def test_a_rollback_moves_the_row_and_lowers_the_counter(make_offer: MakeOffer, make_customer: MakeCustomer) -> None:
    offer = make_offer(max_redemptions=1)
    make_customer()
    redemption = group_commit.redeem(ADA)

    rolled_back = redemption_rollback.roll_back_redemption(redemption.public_id, **ROLLBACK)

    assert (rolled_back.public_id, rolled_back.row.reason, rolled_back.row.rolled_back_by) == (
        redemption.public_id,
        "order cancelled",
        "ann",
    )
    assert rolled_back.row.rolled_back_at is not None
    assert (count_redemptions(), redeemed_counter(offer.id)) == (0, 0)


def test_after_a_rollback_the_customer_may_redeem_again(make_offer: MakeOffer, make_customer: MakeCustomer) -> None:
    make_offer(), make_customer()
    first = group_commit.redeem(ADA)
    redemption_rollback.roll_back_redemption(first.public_id, **ROLLBACK)

    second = group_commit.redeem(ADA)

    assert second.public_id != first.public_id
    assert [
        (d.public_id, d.row.rolled_back_at is None)
        for d in redemption_queries.list_customer_redemptions(first.customer_id)
    ] == [
        (second.public_id, True),
        (first.public_id, False),
    ]


def test_a_second_rollback_is_refused(make_offer: MakeOffer, make_customer: MakeCustomer) -> None:
    offer = make_offer(max_redemptions=5)
    make_customer(), make_customer("bob@example.com")
    redemption = group_commit.redeem(ADA)
    group_commit.redeem(replace(ADA, email="bob@example.com"))
    redemption_rollback.roll_back_redemption(redemption.public_id, **ROLLBACK)

    with pytest.raises(DomainError) as error:
        redemption_rollback.roll_back_redemption(redemption.public_id, **ROLLBACK)
    assert (error.value.key, redeemed_counter(offer.id)) == ("already_rolled_back", 1)


def test_the_id_of_a_rolled_back_redemption_does_not_roll_back_a_later_one(
    make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    make_offer(), make_customer()
    first = group_commit.redeem(ADA)
    redemption_rollback.roll_back_redemption(first.public_id, **ROLLBACK)
    group_commit.redeem(ADA)

    with pytest.raises(DomainError):
        redemption_rollback.roll_back_redemption(first.public_id, **ROLLBACK)
    assert count_redemptions() == 1


@pytest.mark.parametrize("public_id", ["", "nonsense", "0" * 26, "7" + "Z" * 25, "Z" * 26, "ä" * 26])
def test_an_unknown_redemption_cannot_be_rolled_back(app: Flask, public_id: str) -> None:
    with pytest.raises(NotFound):
        redemption_rollback.roll_back_redemption(public_id, **ROLLBACK)


def test_a_reason_may_have_five_hundred_characters(make_offer: MakeOffer, make_customer: MakeCustomer) -> None:
    make_offer(), make_customer()
    public_id = group_commit.redeem(ADA).public_id

    record = redemption_rollback.roll_back_redemption(public_id, f" {'x' * 249}  {'y' * 250} ", by="ann")

    assert record.row.reason == f"{'x' * 249} {'y' * 250}"


@pytest.mark.parametrize("reason", ["", "  ", "a\0b", "x" * 501])
def test_a_rollback_needs_a_valid_reason(app: Flask, reason: str) -> None:
    with pytest.raises(InvalidInput) as error:
        redemption_rollback.roll_back_redemption("0" * 26, reason, "ann")
    assert error.value.errors[0].field == "reason"


def test_after_a_rollback_the_same_key_returns_it_and_a_new_key_redeems_again(
    make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    make_offer(), make_customer()
    first = group_commit.redeem(API)
    redemption_rollback.roll_back_redemption(first.public_id, **ROLLBACK)

    assert group_commit.redeem(API).row.rolled_back_at is not None
    assert group_commit.redeem(replace(API, idempotency_key=None)).public_id == first.public_id
    new = group_commit.redeem(replace(API, idempotency_key="k2"))
    assert (new.is_replay, count_redemptions()) == (False, 1)
    assert group_commit.redeem(API).public_id == first.public_id


def test_concurrent_rollbacks_lower_the_counter_once_per_redemption(
    app: Flask, make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    offer = make_offer(max_redemptions=10)
    public_ids = [
        group_commit.redeem(replace(ADA, email=make_customer(f"c{n}@example.com").email)).public_id for n in range(4)
    ]

    results = run_concurrently(
        app,
        *[
            lambda i=i: redemption_rollback.roll_back_redemption(i, **ROLLBACK)
            for i in public_ids[:3]
            for _ in range(5)
        ],
    )

    assert sum(isinstance(result, RedemptionRecord) for result in results) == 3
    assert {a.key for a in results if isinstance(a, DomainError)} == {"already_rolled_back"}
    assert (count_redemptions(), redeemed_counter(offer.id)) == (1, 1)


def test_concurrent_batches_and_rollbacks_cause_no_deadlock(
    app: Flask, make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    offers = [make_offer(f"CODE{n}", max_redemptions=6) for n in range(3)]
    emails = [make_customer(f"c{n}@example.com").email for n in range(12)]
    first = [
        group_commit.redeem(RedemptionRequest(channel="api", code=o.code, email=emails[0])).public_id for o in offers
    ]

    codes, offer_ids = [o.code for o in offers], [o.id for o in offers]

    def batch(n: int) -> list[RedemptionRecord | DomainError]:
        rotated = emails[n:] + emails[:n]
        return redemption_actions.redeem_all(
            [RedemptionRequest(channel="api", code=c, email=e) for e in rotated for c in codes[::-1]]
        )

    run_concurrently(
        app,
        *[lambda n=n: batch(n) for n in range(8)],
        *[lambda i=i: redemption_rollback.roll_back_redemption(i, **ROLLBACK) for i in first],
    )

    # Customers that were refused while the cap was reached may redeem now.
    redemption_actions.redeem_all([RedemptionRequest(channel="api", code=c, email=e) for e in emails for c in codes])
    assert [redeemed_counter(n) for n in offer_ids] == [6, 6, 6]
    assert count_redemptions() == 18


def test_batches_in_opposite_orders_cause_no_deadlock(
    app: Flask, make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    """Both batches wait for an uncommitted row, and go on when it is rolled back."""
    codes = [
        make_offer(f"CODE{n}", max_redemptions=9, frozen_at=datetime(2026, 1, 1, tzinfo=UTC)).code for n in range(2)
    ]
    emails = [make_customer(f"c{n}@example.com").email for n in range(3)]
    requests = [RedemptionRequest(channel="api", code=code, email=email) for code in codes for email in emails]
    with db.engine.connect() as blocker:
        blocker.execute(
            text(
                "insert into redemption (customer_id, offer_id, channel) "
                "select c.id, o.id, 'api' from customer c, offer o where c.email = 'c1@example.com'"
            )
        )
        batches = threading.Thread(
            target=lambda: results.extend(
                run_concurrently(
                    app,
                    lambda: redemption_actions.redeem_all(requests),
                    lambda: redemption_actions.redeem_all(requests[::-1]),
                )
            )
        )
        results: list[Any] = []
        batches.start()
        while batches.is_alive() and count_lock_waiters("transactionid") < 2:
            db.session.rollback()
        blocker.rollback()
    batches.join()

    is_redeemed = [isinstance(result, RedemptionRecord) for batch in results for result in batch]
    assert (len(is_redeemed), sum(is_redeemed), count_redemptions()) == (12, 6, 6)


def test_a_cap_that_is_set_during_redemptions_counts_all_of_them(
    app: Flask, make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    offer = make_offer()
    emails = [make_customer(f"c{n}@example.com").email for n in range(6)]

    run_concurrently(
        app,
        *[lambda e=e: group_commit.redeem(replace(ADA, email=e)) for e in emails],
        lambda: offer_actions.update_offer(offer.id, {"max_redemptions": 100}, version=None, by="ann"),
    )

    db.session.refresh(offer)
    assert offer.redeemed == (0 if offer.max_redemptions is None else count_redemptions())


def back_date(hours: int) -> None:
    db.session.execute(
        text("update redemption set redeemed_at = redeemed_at - make_interval(hours => :hours)"), {"hours": hours}
    )
    db.session.commit()


def hourly_counts_by_offer() -> dict[int, int]:
    return {row.offer_id: int(row.n) for row in db.session.execute(text("select * from redemption_hour"))}


def test_only_past_hours_are_counted_and_totals_include_the_current_hour(
    make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    offer = make_offer()
    make_customer(), make_customer("bob@example.com")
    group_commit.redeem(ADA)
    back_date(3)
    group_commit.redeem(replace(ADA, email="bob@example.com"))

    task_queue.run("redemptions.count_hours")
    task_queue.run("redemptions.count_hours")

    assert hourly_counts_by_offer() == {offer.id: 1}
    assert count_queries.count_redemptions([offer.id, 999]) == {offer.id: 2, 999: 0}
    assert (
        sum(n for _, n in count_queries.count_redemptions_per_day(offer.id, datetime.now(UTC) - timedelta(days=2))) == 2
    )
    assert sum(n for _, n in count_queries.count_redemptions_per_day(None, datetime.now(UTC) - timedelta(days=2))) == 2


def test_daily_counts_use_the_time_zone(make_offer: MakeOffer, make_customer: MakeCustomer) -> None:
    offer = make_offer()
    make_customer()
    group_commit.redeem(ADA)
    db.session.execute(text("update redemption set redeemed_at = '2026-05-31T22:30:00Z'"))
    db.session.commit()
    task_queue.run("redemptions.count_hours")
    since = datetime(2026, 5, 1, tzinfo=UTC)

    assert [str(day) for day, _ in count_queries.count_redemptions_per_day(offer.id, since)] == ["2026-05-31"]
    assert [str(day) for day, _ in count_queries.count_redemptions_per_day(offer.id, since, "Europe/Berlin")] == [
        "2026-06-01"
    ]


def test_a_rollback_corrects_the_count_of_its_hour(make_offer: MakeOffer, make_customer: MakeCustomer) -> None:
    offer = make_offer()
    ada = make_customer()
    group_commit.redeem(ADA)
    back_date(3)
    task_queue.run("redemptions.count_hours")
    old = redemption_queries.find_current_redemption(offer.id, ada.id)
    assert old is not None

    redemption_rollback.roll_back_redemption(old.public_id, **ROLLBACK)

    assert hourly_counts_by_offer() == {offer.id: 0}
    assert count_queries.count_redemptions([offer.id]) == {offer.id: 0}


def test_counts_are_correct_when_rollbacks_run_during_a_sweep(
    app: Flask, make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    offer = make_offer()
    redemptions = [group_commit.redeem(replace(ADA, email=make_customer(f"c{n}@example.com").email)) for n in range(10)]
    back_date(3)
    old = [redemption.public_id for redemption in redemption_queries.list_latest_redemptions(offer.id, 10)]
    assert len(redemptions) == len(old)

    run_concurrently(
        app,
        *[lambda i=i: redemption_rollback.roll_back_redemption(i, **ROLLBACK) for i in old[:7]],
        *[hourly_counts.update_hourly_counts] * 3,
    )

    assert hourly_counts_by_offer() == {offer.id: 3} == count_queries.count_redemptions([offer.id])


def test_the_sweep_waits_for_a_running_rollback(app: Flask, make_offer: MakeOffer, make_customer: MakeCustomer) -> None:
    """The deletion of a redemption is not committed yet when the sweep starts."""
    offer = make_offer()
    make_customer()
    group_commit.redeem(ADA)
    back_date(3)
    redemption = redemption_queries.list_latest_redemptions(offer.id, 1)[0]
    with db.engine.connect() as rollback:
        rollback.execute(text("select pg_advisory_xact_lock_shared(hashtext('onecode.redemption_tally'))"))
        rollback.execute(text("delete from redemption where customer_id = :id"), {"id": redemption.customer_id})
        sweep = threading.Thread(target=lambda: task_queue.run("redemptions.count_hours"))
        sweep.start()
        while sweep.is_alive() and not count_lock_waiters("advisory"):
            db.session.rollback()
        rollback.commit()
        sweep.join()

    assert hourly_counts_by_offer() == {}


def test_pages_contain_every_redemption_once(make_offer: MakeOffer, make_customer: MakeCustomer) -> None:
    first, second = make_offer("FIRST"), make_offer("SECOND")
    emails = [make_customer(f"c{n}@example.com").email for n in range(5)]
    redemption_actions.redeem_all(
        [RedemptionRequest(channel="api", code=c, email=e) for e in emails for c in ("FIRST", "SECOND")]
    )

    listed: list[str] = []
    cursor = None
    while True:
        found = redemption_queries.list_redemptions(RedemptionFilter(), 3, cursor)
        listed += [redemption.public_id for redemption in found[:3]]
        if len(found) <= 3:
            break
        last = found[2]
        cursor = KeysetCursor(last.row.redeemed_at, last.customer_id, last.offer_id)

    assert len(listed) == len(set(listed)) == 10
    assert listed == [d.public_id for d in redemption_queries.list_redemptions(RedemptionFilter(), 10)]
    assert [len(redemption_queries.list_redemptions(RedemptionFilter(offer_id=o.id), 10)) for o in (first, second)] == [
        5,
        5,
    ]


def test_redemptions_are_filtered(make_offer: MakeOffer, make_customer: MakeCustomer) -> None:
    offer = make_offer()
    ada = make_customer()
    make_customer("bob@example.com")
    group_commit.redeem(ADA)
    group_commit.redeem(replace(ADA, email="bob@example.com", channel="staff"))
    now = datetime.now(UTC)

    def count_filtered(**values: Any) -> int:
        assert len(redemption_queries.list_redemptions(RedemptionFilter(**values), 10)) == len(
            list(redemption_queries.stream_redemptions(RedemptionFilter(**values)))
        )
        return len(redemption_queries.list_redemptions(RedemptionFilter(**values), 10))

    assert (
        count_filtered(customer_id=ada.id)
        == count_filtered(customer_id=ada.id, offer_id=offer.id)
        == count_filtered(channel="staff")
        == 1
    )
    assert (
        count_filtered(customer_id=ada.id, offer_id=offer.id + 1) == count_filtered(until=now - timedelta(days=1)) == 0
    )
    assert count_filtered(since=now - timedelta(days=1), until=now + timedelta(days=1)) == 2


def test_an_export_includes_all_offers_newest_first(make_offer: MakeOffer, make_customer: MakeCustomer) -> None:
    first, second = make_offer("SUMMER25"), make_offer("WINTER")
    ids = [make_customer(f"c{n}@example.com").id for n in range(3)]
    for n, code in ((1, "WINTER"), (0, "SUMMER25"), (2, "SUMMER25"), (1, "SUMMER25"), (0, "WINTER")):
        group_commit.redeem(replace(ADA, code=code, email=f"c{n}@example.com"))

    streamed = redemption_queries.stream_redemptions(RedemptionFilter())

    assert [(record.offer_id, record.customer_id) for record in streamed] == [
        (first.id, ids[1]),
        (first.id, ids[2]),
        (first.id, ids[0]),
        (second.id, ids[0]),
        (second.id, ids[1]),
    ]


def test_the_redemptions_of_a_customer_are_listed_newest_first(
    make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    ada = make_customer()
    for code in ("FIRST", "SECOND", "THIRD"):
        make_offer(code)
        group_commit.redeem(replace(ADA, code=code))
    rolled_back = redemption_queries.list_customer_redemptions(ada.id)[1]
    redemption_rollback.roll_back_redemption(rolled_back.public_id, **ROLLBACK)

    found = redemption_queries.list_customer_redemptions(ada.id)

    assert [(record.code, record.row.rolled_back_at is None) for record in found] == [
        ("THIRD", True),
        ("SECOND", False),
        ("FIRST", True),
    ]


def test_the_audit_trail_has_the_filter_of_an_export(app: Flask) -> None:
    since = datetime(2026, 3, 1, 12, tzinfo=UTC)
    for criteria in (RedemptionFilter(offer_id=7, channel="api", since=since), RedemptionFilter(), None):
        export_actions.record_redemption_export(criteria, by="ann")
    db.session.rollback()

    entries = db.session.execute(text("select actor, action, detail from audit_entry order by id")).all()

    assert [tuple(entry) for entry in entries] == [
        ("ann", "redemptions.exported", {"offer_id": 7, "channel": "api", "since": "2026-03-01T12:00:00+00:00"}),
        ("ann", "redemptions.exported", None),
        ("ann", "redemptions.exported", {"found": "nothing"}),
    ]


def test_customers_with_a_redemption_are_found(make_offer: MakeOffer, make_customer: MakeCustomer) -> None:
    offer = make_offer()
    ada, bob = make_customer(), make_customer("bob@example.com")
    group_commit.redeem(ADA)

    assert redemption_queries.find_redeemed_customer_ids(offer.id, [ada.id, bob.id]) == {ada.id}
