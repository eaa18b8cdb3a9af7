"""Reserving and using send slots under the rate limit."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from flask import Flask
from sqlalchemy import text

from webapp.campaigns.sending import batches
from webapp.campaigns.sending.throttle import SendThrottle
from webapp.core.extensions import db

# In the year 3000, so that it has not passed when it is read.
FREE_AT = "timestamptz '3000-01-01 00:00:00+00'"


def reserved(app: Flask, throttle: SendThrottle, max_slots: int) -> timedelta:
    """Return the time that one call of `try_acquire` reserves."""
    db.session.execute(
        text(f"insert into mail_pace values (1, {FREE_AT}) on conflict (id) do update set free_at = {FREE_AT}")
    )
    db.session.commit()
    throttle.try_acquire(max_slots)
    return db.session.execute(text(f"select free_at - {FREE_AT} from mail_pace")).scalar_one()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("per_second", "max_slots", "seconds"),
    [(10, 50, 1.0), (10, 3, 0.3), (10, 1, 0.1), (2.5, 50, 0.8), (0.5, 50, 2.0), (0.5, 1, 2.0)],
)
def test_a_sender_reserves_a_second_but_no_more_than_it_needs(
    app: Flask, per_second: float, max_slots: int, seconds: float
) -> None:
    assert reserved(app, SendThrottle(per_second), max_slots) == timedelta(seconds=seconds)


def test_reserved_slots_are_used_before_others_are_reserved(app: Flask) -> None:
    throttle = SendThrottle(4)
    assert throttle.try_acquire(2) == 0
    free_at = db.session.execute(text("select free_at from mail_pace")).scalar_one()
    throttle._next_slot_at -= 0.3
    assert throttle.try_acquire(2) == 0
    assert db.session.execute(text("select free_at from mail_pace")).scalar_one() == free_at


def test_a_slot_that_is_not_due_is_kept_for_the_next_call(app: Flask) -> None:
    throttle = SendThrottle(0.001)
    assert throttle.try_acquire(1) == 0
    waits = [throttle.try_acquire(1) for _ in range(3)]
    assert 900 < waits[2] <= waits[1] <= waits[0] <= 1000
    free_at: datetime = db.session.execute(text("select free_at from mail_pace")).scalar_one()
    left = free_at - db.session.execute(text("select now()")).scalar_one()
    assert left <= timedelta(seconds=2000)


def test_the_seconds_until_the_first_of_several_slots_are_returned(app: Flask) -> None:
    assert batches.reserve_send_slots(5, 0.001) == pytest.approx(0, abs=60)
    assert batches.reserve_send_slots(1, 0.001) == pytest.approx(5000, abs=60)
