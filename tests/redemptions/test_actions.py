from __future__ import annotations

import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import text

from tests.support.redemptions import (
    ROLLBACK,
    MakeCustomer,
    MakeOffer,
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
from webapp.redemptions import group_commit, hourly_counts, personal_codes
from webapp.redemptions import queries as redemption_queries
from webapp.redemptions import rollback as redemption_rollback
from webapp.redemptions.queries import KeysetCursor, RedemptionFilter, RedemptionRecord
from webapp.redemptions.rules import Order, RedemptionRequest

ADA = RedemptionRequest(channel="form", code="SUMMER25", email="ada@example.com")


def test_a_redemption_is_a_row(offer: MakeOffer, customer: MakeCustomer) -> None:
    offer(), customer()

    done = group_commit.redeem(ADA)

    assert (done.code, done.offer_name, done.email, done.is_replay) == ("SUMMER25", "Summer", "ada@example.com", False)
    assert done.discount == Discount("percent", percent=Decimal(25))
    assert count_redemptions() == 1


def test_what_was_answered_is_what_is_on_disk(offer: MakeOffer, customer: MakeCustomer) -> None:
    offer(), customer()
    ask = replace(ADA, order=Order("A-1", 4999, "EUR"), metadata={"till": 7}, channel="api", api_key_id=1)

    done = group_commit.redeem(ask)

    found = redemption_queries.find_redemption(done.public_id)
    assert found is not None
    assert found.row == done.row
    assert (found.row.discount_amount, found.row.order_metadata) == (1250, {"till": 7})


def test_a_second_use_is_refused(offer: MakeOffer, customer: MakeCustomer) -> None:
    offer(), customer()
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
def test_a_refusal_names_its_reason_and_writes_nothing(
    offer: MakeOffer, customer: MakeCustomer, values: dict[str, Any], reason: str
) -> None:
    row = offer(**values)
    customer()

    assert refusal_key(ADA) == reason
    assert count_redemptions() == 0
    assert redeemed_counter(row.id) == values.get("redeemed", 0)


def test_an_unknown_code_and_an_unknown_customer_are_refused(offer: MakeOffer, customer: MakeCustomer) -> None:
    offer(), customer()

    assert refusal_key(replace(ADA, code="WINTER")) == "not_found"
    assert refusal_key(replace(ADA, email="bob@example.com")) == "customer_unknown"


def test_an_erased_customer_is_unknown(offer: MakeOffer, customer: MakeCustomer) -> None:
    row, erased = offer(), customer()
    customer_actions.erase_customer(erased.id, by="tests")

    assert refusal_key(RedemptionRequest(channel="link", offer_id=row.id, customer_id=erased.id)) == "customer_unknown"


def test_only_members_of_the_audience_may_redeem(offer: MakeOffer, customer: MakeCustomer) -> None:
    audience = Audience(name="Regulars")
    db.session.add(audience)
    db.session.flush()
    offer(audience_id=audience.id)
    ada = customer()
    assert refusal_key(ADA) == "customer_not_eligible"
    db.session.add(AudienceMember(audience_id=audience.id, customer_id=ada.id))
    db.session.commit()

    assert group_commit.redeem(ADA).customer_id == ada.id


def test_a_customer_is_found_by_the_id_of_the_shop(offer: MakeOffer, customer: MakeCustomer) -> None:
    offer()
    ada = customer(source_id="C-1")

    assert group_commit.redeem(RedemptionRequest(channel="api", code="SUMMER25", source_id="C-1")).customer_id == ada.id


def test_a_personal_code_works_with_its_own_customer_alone(offer: MakeOffer, customer: MakeCustomer) -> None:
    row = offer(personal_code_required=True)
    ada = customer()
    customer("bob@example.com")
    code = personal_codes.derive_personal_code("SUMMER25", row.id, ada.id).replace("-", "")

    assert refusal_key(replace(ADA, code=code, email="bob@example.com")) == "personal_code_required"
    assert group_commit.redeem(replace(ADA, code=code)).customer_id == ada.id


def test_a_wrong_personal_code_is_refused_also_where_none_is_required(offer: MakeOffer, customer: MakeCustomer) -> None:
    offer(), customer()

    assert refusal_key(replace(ADA, code="SUMMER25AAAAAAAA")) == "personal_code_required"


def test_an_exact_shared_code_wins_over_a_personal_one(offer: MakeOffer, customer: MakeCustomer) -> None:
    row, ada = offer(), customer()
    clash = personal_codes.derive_personal_code("SUMMER25", row.id, ada.id)
    exact = offer(clash)

    assert group_commit.redeem(replace(ADA, code=exact.code)).offer_id == exact.id


def test_the_first_redemption_freezes_the_offer_and_later_ones_leave_it(
    offer: MakeOffer, customer: MakeCustomer
) -> None:
    row = offer()
    customer(), customer("bob@example.com")
    group_commit.redeem(ADA)
    db.session.refresh(row)
    frozen_at, version = row.frozen_at, db.session.execute(text("select xmin::text from offer")).scalar_one()
    group_commit.redeem(replace(ADA, email="bob@example.com"))

    assert frozen_at is not None
    assert db.session.execute(text("select xmin::text from offer")).scalar_one() == version


def test_a_refusal_freezes_nothing(offer: MakeOffer) -> None:
    row = offer()
    refusal_key(ADA)

    db.session.refresh(row)
    assert row.frozen_at is None


def test_the_cap_is_counted_and_kept(offer: MakeOffer, customer: MakeCustomer) -> None:
    row = offer(max_redemptions=2)
    emails = [customer(f"c{n}@example.com").email for n in range(3)]

    answers = [group_commit.redeem(replace(ADA, email=email)).email for email in emails[:2]]

    assert answers == emails[:2]
    assert refusal_key(replace(ADA, email=emails[2])) == "offer_exhausted"
    assert (count_redemptions(), redeemed_counter(row.id)) == (2, 2)


def test_a_raised_cap_lets_more_in(offer: MakeOffer, customer: MakeCustomer) -> None:
    row = offer(max_redemptions=1)
    customer(), customer("bob@example.com")
    group_commit.redeem(ADA)
    offer_actions.update_offer(row.id, {"max_redemptions": 2}, version=None, by="ann")

    assert group_commit.redeem(replace(ADA, email="bob@example.com")).is_replay is False


@pytest.mark.parametrize("taken", [3, 5])
def test_a_batch_waits_for_what_another_takes_of_the_cap(
    app: Flask, offer: MakeOffer, customer: MakeCustomer, taken: int
) -> None:
    """More than remain are asked for while another transaction, not committed yet, takes some of them."""
    row = offer(max_redemptions=10, redeemed=5, frozen_at=datetime(2026, 1, 1, tzinfo=UTC))
    requests = [replace(ADA, email=customer(f"c{n}@example.com").email) for n in range(6)]
    answers: list[Any] = []

    def redeem_all() -> None:
        with app.app_context():
            answers.extend(redemption_actions.redeem_all(requests))

    batch = threading.Thread(target=redeem_all)
    with db.engine.connect() as other:
        other.execute(text("update offer set redeemed = redeemed + :taken"), {"taken": taken})
        batch.start()
        while batch.is_alive() and not count_lock_waiters("transactionid"):
            db.session.rollback()
        other.commit()
    batch.join()

    left = 5 - taken
    expected = ["redeemed"] * left + ["offer_exhausted"] * (6 - left)
    assert [getattr(answer, "reason", "redeemed") for answer in answers] == expected
    assert (redeemed_counter(row.id), count_redemptions()) == (10, left)


def test_many_are_answered_in_their_order_and_the_cap_takes_the_first(offer: MakeOffer, customer: MakeCustomer) -> None:
    capped, free = offer("CAPPED", max_redemptions=2), offer("FREE")
    emails = [customer(f"c{n}@example.com").email for n in range(4)][::-1]
    asks = [RedemptionRequest(channel="api", code=code, email=email) for email in emails for code in ("CAPPED", "FREE")]
    asks.append(RedemptionRequest(channel="api", code="CAPPED", email="nobody@example.com"))
    asks.append(asks[0])

    answers = redemption_actions.redeem_all(asks)

    told = ["redeemed" if isinstance(a, RedemptionRecord) else a.key for a in answers]
    assert told == [
        *["redeemed"] * 4,
        *["offer_exhausted", "redeemed"] * 2,
        "customer_unknown",
        "already_redeemed",
    ]
    assert (redeemed_counter(capped.id), redeemed_counter(free.id), count_redemptions()) == (2, 0, 6)


def test_an_order_in_another_currency_stops_only_itself(offer: MakeOffer, customer: MakeCustomer) -> None:
    offer(discount_type="amount", amount=500, currency="EUR")
    customer(), customer("bob@example.com")
    bob = replace(ADA, email="bob@example.com")

    answers = redemption_actions.redeem_all([replace(ADA, order=Order("A-1", 900, "USD")), bob])

    assert [type(answer) for answer in answers] == [InvalidInput, RedemptionRecord]
    assert count_redemptions() == 1


API = replace(ADA, channel="api", api_key_id=1, idempotency_key="k1", body_hash=b"1", order=Order("A-1"))


@pytest.mark.parametrize("again", [API, replace(API, idempotency_key=None), replace(API, order=None)])
def test_the_same_request_again_answers_the_first_result(
    offer: MakeOffer, customer: MakeCustomer, again: RedemptionRequest
) -> None:
    offer(), customer()
    first = group_commit.redeem(API)

    repeated = group_commit.redeem(again)

    assert (repeated.is_replay, repeated.public_id) == (True, first.public_id)
    assert count_redemptions() == 1


def test_a_repeat_is_answered_also_after_the_offer_has_ended_and_is_used_up(
    offer: MakeOffer, customer: MakeCustomer
) -> None:
    row = offer(max_redemptions=1)
    customer()
    first = group_commit.redeem(API)
    offer_actions.update_offer(row.id, {"ends_at": datetime.now(UTC) - timedelta(hours=1)}, version=None, by="ann")

    assert group_commit.redeem(API).public_id == first.public_id


def test_the_same_key_with_another_body_is_refused(offer: MakeOffer, customer: MakeCustomer) -> None:
    offer(), customer()
    group_commit.redeem(API)

    with pytest.raises(InvalidInput):
        group_commit.redeem(replace(API, body_hash=b"2"))


def test_repeats_at_once_make_one_row_and_all_hear_of_it(app: Flask, offer: MakeOffer, customer: MakeCustomer) -> None:
    row = offer(max_redemptions=5)
    customer()

    answers = run_concurrently(app, *[lambda: group_commit.redeem(API)] * 12)

    assert len({answer.public_id for answer in answers}) == 1
    assert sum(not answer.is_replay for answer in answers) == 1
    assert (count_redemptions(), redeemed_counter(row.id)) == (1, 1)


def test_undoing_moves_the_row_and_gives_the_unit_back(offer: MakeOffer, customer: MakeCustomer) -> None:
    row = offer(max_redemptions=1)
    customer()
    done = group_commit.redeem(ADA)

    undone = redemption_rollback.roll_back_redemption(done.public_id, **ROLLBACK)

    assert (undone.public_id, undone.row.reason, undone.row.rolled_back_by) == (
        done.public_id,
        "order cancelled",
        "ann",
    )
    assert undone.row.rolled_back_at is not None
    assert (count_redemptions(), redeemed_counter(row.id)) == (0, 0)


def test_an_undone_redemption_is_still_found_and_may_be_made_anew(offer: MakeOffer, customer: MakeCustomer) -> None:
    offer(), customer()
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


def test_undoing_twice_is_refused_and_gives_one_unit_back(offer: MakeOffer, customer: MakeCustomer) -> None:
    row = offer(max_redemptions=5)
    customer(), customer("bob@example.com")
    done = group_commit.redeem(ADA)
    group_commit.redeem(replace(ADA, email="bob@example.com"))
    redemption_rollback.roll_back_redemption(done.public_id, **ROLLBACK)

    with pytest.raises(DomainError) as error:
        redemption_rollback.roll_back_redemption(done.public_id, **ROLLBACK)
    assert (error.value.key, redeemed_counter(row.id)) == ("already_rolled_back", 1)


def test_the_id_of_an_undone_redemption_does_not_undo_the_one_made_after_it(
    offer: MakeOffer, customer: MakeCustomer
) -> None:
    offer(), customer()
    first = group_commit.redeem(ADA)
    redemption_rollback.roll_back_redemption(first.public_id, **ROLLBACK)
    group_commit.redeem(ADA)

    with pytest.raises(DomainError):
        redemption_rollback.roll_back_redemption(first.public_id, **ROLLBACK)
    assert count_redemptions() == 1


@pytest.mark.parametrize("public_id", ["", "nonsense", "0" * 26, "7" + "Z" * 25, "Z" * 26, "ä" * 26])
def test_what_is_not_there_can_not_be_undone(app: Flask, public_id: str) -> None:
    with pytest.raises(NotFound):
        redemption_rollback.roll_back_redemption(public_id, **ROLLBACK)


def test_a_reason_may_have_five_hundred_characters(offer: MakeOffer, customer: MakeCustomer) -> None:
    offer(), customer()
    public_id = group_commit.redeem(ADA).public_id

    record = redemption_rollback.roll_back_redemption(public_id, f" {'x' * 249}  {'y' * 250} ", by="ann")

    assert record.row.reason == f"{'x' * 249} {'y' * 250}"


@pytest.mark.parametrize("reason", ["", "  ", "a\0b", "x" * 501])
def test_undoing_needs_a_reason(app: Flask, reason: str) -> None:
    with pytest.raises(InvalidInput) as error:
        redemption_rollback.roll_back_redemption("0" * 26, reason, "ann")
    assert error.value.errors[0].field == "reason"


def test_after_undoing_the_same_key_tells_of_it_and_a_new_key_or_order_redeems_anew(
    offer: MakeOffer, customer: MakeCustomer
) -> None:
    offer(), customer()
    first = group_commit.redeem(API)
    redemption_rollback.roll_back_redemption(first.public_id, **ROLLBACK)

    assert group_commit.redeem(API).row.rolled_back_at is not None
    assert group_commit.redeem(replace(API, idempotency_key=None)).public_id == first.public_id
    anew = group_commit.redeem(replace(API, idempotency_key="k2"))
    assert (anew.is_replay, count_redemptions()) == (False, 1)
    assert group_commit.redeem(API).public_id == first.public_id


def test_many_who_undo_at_once_give_each_unit_back_exactly_once(
    app: Flask, offer: MakeOffer, customer: MakeCustomer
) -> None:
    row = offer(max_redemptions=10)
    done = [group_commit.redeem(replace(ADA, email=customer(f"c{n}@example.com").email)).public_id for n in range(4)]

    answers = run_concurrently(
        app, *[lambda i=i: redemption_rollback.roll_back_redemption(i, **ROLLBACK) for i in done[:3] for _ in range(5)]
    )

    assert sum(isinstance(answer, RedemptionRecord) for answer in answers) == 3
    assert {a.key for a in answers if isinstance(a, DomainError)} == {"already_rolled_back"}
    assert (count_redemptions(), redeemed_counter(row.id)) == (1, 1)


def test_batches_and_undoing_at_once_never_wait_in_a_circle_and_stay_exact(
    app: Flask, offer: MakeOffer, customer: MakeCustomer
) -> None:
    made = [offer(f"CODE{n}", max_redemptions=6) for n in range(3)]
    emails = [customer(f"c{n}@example.com").email for n in range(12)]
    first = [
        group_commit.redeem(RedemptionRequest(channel="api", code=o.code, email=emails[0])).public_id for o in made
    ]

    codes, ids_ = [o.code for o in made], [o.id for o in made]

    def batch(n: int) -> list[RedemptionRecord | DomainError]:
        turned = emails[n:] + emails[:n]
        return redemption_actions.redeem_all(
            [RedemptionRequest(channel="api", code=c, email=e) for e in turned for c in codes[::-1]]
        )

    run_concurrently(
        app,
        *[lambda n=n: batch(n) for n in range(8)],
        *[lambda i=i: redemption_rollback.roll_back_redemption(i, **ROLLBACK) for i in first],
    )

    # Whoever was refused for the cap before a unit came back may come again.
    redemption_actions.redeem_all([RedemptionRequest(channel="api", code=c, email=e) for e in emails for c in codes])
    assert [redeemed_counter(n) for n in ids_] == [6, 6, 6]
    assert count_redemptions() == 18


def test_two_batches_in_opposite_orders_wait_for_one_another_in_one_direction_only(
    app: Flask, offer: MakeOffer, customer: MakeCustomer
) -> None:
    """Step by step: both begin, meet a row that is not committed yet, and go on when it turns out to be none."""
    codes = [offer(f"CODE{n}", max_redemptions=9, frozen_at=datetime(2026, 1, 1, tzinfo=UTC)).code for n in range(2)]
    emails = [customer(f"c{n}@example.com").email for n in range(3)]
    asks = [RedemptionRequest(channel="api", code=code, email=email) for code in codes for email in emails]
    with db.engine.connect() as first:
        first.execute(
            text(
                "insert into redemption (customer_id, offer_id, channel) "
                "select c.id, o.id, 'api' from customer c, offer o where c.email = 'c1@example.com'"
            )
        )
        batches = threading.Thread(
            target=lambda: answers.extend(
                run_concurrently(
                    app, lambda: redemption_actions.redeem_all(asks), lambda: redemption_actions.redeem_all(asks[::-1])
                )
            )
        )
        answers: list[Any] = []
        batches.start()
        while batches.is_alive() and count_lock_waiters("transactionid") < 2:
            db.session.rollback()
        first.rollback()
    batches.join()

    told = [isinstance(one, RedemptionRecord) for answer in answers for one in answer]
    assert (len(told), sum(told), count_redemptions()) == (12, 6, 6)


def test_a_cap_can_not_slip_in_between_the_look_and_the_write(
    app: Flask, offer: MakeOffer, customer: MakeCustomer
) -> None:
    row = offer()
    emails = [customer(f"c{n}@example.com").email for n in range(6)]

    run_concurrently(
        app,
        *[lambda e=e: group_commit.redeem(replace(ADA, email=e)) for e in emails],
        lambda: offer_actions.update_offer(row.id, {"max_redemptions": 100}, version=None, by="ann"),
    )

    db.session.refresh(row)
    assert row.redeemed == (0 if row.max_redemptions is None else count_redemptions())


def back_date(hours: int) -> None:
    db.session.execute(
        text("update redemption set redeemed_at = redeemed_at - make_interval(hours => :hours)"), {"hours": hours}
    )
    db.session.commit()


def hours() -> dict[int, int]:
    return {row.offer_id: int(row.n) for row in db.session.execute(text("select * from redemption_hour"))}


def test_only_hours_that_are_over_are_counted_and_totals_have_the_rest(
    offer: MakeOffer, customer: MakeCustomer
) -> None:
    row = offer()
    customer(), customer("bob@example.com")
    group_commit.redeem(ADA)
    back_date(3)
    group_commit.redeem(replace(ADA, email="bob@example.com"))

    task_queue.run("redemptions.count_hours")
    task_queue.run("redemptions.count_hours")

    assert hours() == {row.id: 1}
    assert redemption_queries.count_redemptions([row.id, 999]) == {row.id: 2, 999: 0}
    assert (
        sum(n for _, n in redemption_queries.count_redemptions_per_day(row.id, datetime.now(UTC) - timedelta(days=2)))
        == 2
    )
    assert (
        sum(n for _, n in redemption_queries.count_redemptions_per_day(None, datetime.now(UTC) - timedelta(days=2)))
        == 2
    )


def test_days_are_those_of_the_zone(offer: MakeOffer, customer: MakeCustomer) -> None:
    row = offer()
    customer()
    group_commit.redeem(ADA)
    db.session.execute(text("update redemption set redeemed_at = '2026-05-31T22:30:00Z'"))
    db.session.commit()
    task_queue.run("redemptions.count_hours")
    since = datetime(2026, 5, 1, tzinfo=UTC)

    assert [str(day) for day, _ in redemption_queries.count_redemptions_per_day(row.id, since)] == ["2026-05-31"]
    assert [str(day) for day, _ in redemption_queries.count_redemptions_per_day(row.id, since, "Europe/Berlin")] == [
        "2026-06-01"
    ]


def test_undoing_a_counted_redemption_corrects_its_hour(offer: MakeOffer, customer: MakeCustomer) -> None:
    row = offer()
    ada = customer()
    group_commit.redeem(ADA)
    back_date(3)
    task_queue.run("redemptions.count_hours")
    old = redemption_queries.find_live_redemption(row.id, ada.id)
    assert old is not None

    redemption_rollback.roll_back_redemption(old.public_id, **ROLLBACK)

    assert hours() == {row.id: 0}
    assert redemption_queries.count_redemptions([row.id]) == {row.id: 0}


def test_undoing_while_hours_are_counted_leaves_them_right(
    app: Flask, offer: MakeOffer, customer: MakeCustomer
) -> None:
    row = offer()
    made = [group_commit.redeem(replace(ADA, email=customer(f"c{n}@example.com").email)) for n in range(10)]
    back_date(3)
    old = [done.public_id for done in redemption_queries.list_latest_redemptions(row.id, 10)]
    assert len(made) == len(old)

    run_concurrently(
        app,
        *[lambda i=i: redemption_rollback.roll_back_redemption(i, **ROLLBACK) for i in old[:7]],
        *[hourly_counts.update_hourly_counts] * 3,
    )

    assert hours() == {row.id: 3} == redemption_queries.count_redemptions([row.id])


def test_the_count_waits_for_whoever_is_undoing(app: Flask, offer: MakeOffer, customer: MakeCustomer) -> None:
    """The race itself, step by step: a redemption is gone but not yet committed when the sweep begins."""
    row = offer()
    customer()
    group_commit.redeem(ADA)
    back_date(3)
    done = redemption_queries.list_latest_redemptions(row.id, 1)[0]
    with db.engine.connect() as undoing:
        undoing.execute(text("select pg_advisory_xact_lock_shared(hashtext('onecode.redemption_tally'))"))
        undoing.execute(text("delete from redemption where customer_id = :id"), {"id": done.customer_id})
        sweep = threading.Thread(target=lambda: task_queue.run("redemptions.count_hours"))
        sweep.start()
        while sweep.is_alive() and not count_lock_waiters("advisory"):
            db.session.rollback()
        undoing.commit()
        sweep.join()

    assert hours() == {}


def test_pages_go_through_everything_once(offer: MakeOffer, customer: MakeCustomer) -> None:
    first, second = offer("FIRST"), offer("SECOND")
    emails = [customer(f"c{n}@example.com").email for n in range(5)]
    redemption_actions.redeem_all(
        [RedemptionRequest(channel="api", code=c, email=e) for e in emails for c in ("FIRST", "SECOND")]
    )

    seen: list[str] = []
    place = None
    while True:
        found = redemption_queries.list_redemptions(RedemptionFilter(), 3, place)
        seen += [done.public_id for done in found[:3]]
        if len(found) <= 3:
            break
        last = found[2]
        place = KeysetCursor(last.row.redeemed_at, last.customer_id, last.offer_id)

    assert len(seen) == len(set(seen)) == 10
    assert seen == [d.public_id for d in redemption_queries.list_redemptions(RedemptionFilter(), 10)]
    assert [len(redemption_queries.list_redemptions(RedemptionFilter(offer_id=o.id), 10)) for o in (first, second)] == [
        5,
        5,
    ]


def test_lists_are_narrowed(offer: MakeOffer, customer: MakeCustomer) -> None:
    row = offer()
    ada = customer()
    customer("bob@example.com")
    group_commit.redeem(ADA)
    group_commit.redeem(replace(ADA, email="bob@example.com", channel="staff"))
    now = datetime.now(UTC)

    def found(**values: Any) -> int:
        assert len(redemption_queries.list_redemptions(RedemptionFilter(**values), 10)) == len(
            list(redemption_queries.stream_redemptions(RedemptionFilter(**values)))
        )
        return len(redemption_queries.list_redemptions(RedemptionFilter(**values), 10))

    assert found(customer_id=ada.id) == found(customer_id=ada.id, offer_id=row.id) == found(channel="staff") == 1
    assert found(customer_id=ada.id, offer_id=row.id + 1) == found(until=now - timedelta(days=1)) == 0
    assert found(since=now - timedelta(days=1), until=now + timedelta(days=1)) == 2


def test_an_export_goes_through_the_offers_and_starts_with_the_newest(offer: MakeOffer, customer: MakeCustomer) -> None:
    first, second = offer("SUMMER25"), offer("WINTER")
    ids = [customer(f"c{n}@example.com").id for n in range(3)]
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


def test_the_redemptions_of_a_customer_start_with_the_newest(offer: MakeOffer, customer: MakeCustomer) -> None:
    ada = customer()
    for code in ("FIRST", "SECOND", "THIRD"):
        offer(code)
        group_commit.redeem(replace(ADA, code=code))
    undone = redemption_queries.list_customer_redemptions(ada.id)[1]
    redemption_rollback.roll_back_redemption(undone.public_id, **ROLLBACK)

    found = redemption_queries.list_customer_redemptions(ada.id)

    assert [(record.code, record.row.rolled_back_at is None) for record in found] == [
        ("THIRD", True),
        ("SECOND", False),
        ("FIRST", True),
    ]


def test_the_audit_trail_has_the_filter_of_an_export(app: Flask) -> None:
    since = datetime(2026, 3, 1, 12, tzinfo=UTC)
    for criteria in (RedemptionFilter(offer_id=7, channel="api", since=since), RedemptionFilter(), None):
        redemption_actions.record_redemption_export(criteria, by="ann")
    db.session.rollback()

    entries = db.session.execute(text("select actor, action, detail from audit_entry order by id")).all()

    assert [tuple(entry) for entry in entries] == [
        ("ann", "redemptions.exported", {"offer_id": 7, "channel": "api", "since": "2026-03-01T12:00:00+00:00"}),
        ("ann", "redemptions.exported", None),
        ("ann", "redemptions.exported", {"found": "nothing"}),
    ]


def test_those_who_have_redeemed_are_told_from_those_who_have_not(offer: MakeOffer, customer: MakeCustomer) -> None:
    row = offer()
    ada, bob = customer(), customer("bob@example.com")
    group_commit.redeem(ADA)

    assert redemption_queries.find_redeemed_customer_ids(row.id, [ada.id, bob.id]) == {ada.id}
