"""Seeding the demo: the same data for one day, and sign-in links for staff."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from flask import Flask
from sqlalchemy import text

from local.demo import scenario, seed
from webapp.accounts.models import StaffUser
from webapp.core.extensions import db

SELECT_REDEMPTIONS = (
    "select o.code, c.email, r.redeemed_at, channel, order_id, order_amount, discount_amount, order_metadata"
    " from redemption r join offer o on o.id = r.offer_id join customer c on c.id = r.customer_id"
)
# All data except secrets and the times of the seeding itself.
DATA_QUERIES = (
    SELECT_REDEMPTIONS,
    "select email, email_as_given, name, locale, source_id, created_at from customer",
    "select a.name, c.email, m.joined_at from audience_member m join audience a on a.id = m.audience_id"
    " join customer c on c.id = m.customer_id",
    "select code, name, starts_at, ends_at, redeemed, frozen_at, paused_at, version"
    " from offer join offer_counter on offer_id = id",
    "select code, created_at, closed_at from offer_code",
    "select o.code, c.email, r.redeemed_at, rolled_back_at, rolled_back_by, reason"
    " from rollback r join offer o on o.id = r.offer_id join customer c on c.id = r.customer_id",
    "select o.code, kind, status, total, subject, pause_reason, sent_in_batches, finished_at"
    " from campaign c join offer o on o.id = c.offer_id",
    "select o.code, c.kind, b.seq, b.windows, b.window_start, b.sent, b.status"
    " from batch b join campaign c on c.id = b.campaign_id join offer o on o.id = c.offer_id",
    "select o.code, c.kind, u.email, state, smtp_code, i.text, i.at, attempts from mail_issue i"
    " join campaign c on c.id = i.campaign_id join offer o on o.id = c.offer_id"
    " join customer u on u.id = i.customer_id",
    "select email, reason, at, words from suppression",
)


def select_rows(statement: str) -> list[str]:
    rows = sorted(map(str, db.session.execute(text(statement))))
    db.session.rollback()
    return rows


@pytest.fixture(scope="module")
def expected(demo_app: Flask) -> list[list[str]]:
    with demo_app.app_context():
        return [select_rows(statement) for statement in DATA_QUERIES]


def test_seeding_twice_on_one_day_creates_the_same_data(
    expected: list[list[str]], history_end: datetime, app: Flask
) -> None:
    seed.seed_database(history_end)

    rows_by_query = [select_rows(statement) for statement in DATA_QUERIES]
    assert [len(rows) for rows in rows_by_query] == [len(rows) for rows in expected]
    assert rows_by_query == expected


def test_an_earlier_seed_of_the_day_has_a_subset_of_the_redemptions(
    expected: list[list[str]], history_end: datetime, app: Flask
) -> None:
    to_utc = scenario.create_day_converter(history_end)
    midnight = to_utc(0)

    seed.seed_database(max(midnight, history_end - timedelta(hours=3)))

    redemptions = expected[DATA_QUERIES.index(SELECT_REDEMPTIONS)]
    assert set(select_rows(SELECT_REDEMPTIONS)) <= set(redemptions)


def test_only_the_newest_sign_in_link_of_a_staff_member_works(app: Flask) -> None:
    for member in (scenario.MANAGER, scenario.VIEWER):
        db.session.add(StaffUser(email=member.email, name=member.name, role=member.role, password_hash="!"))
    db.session.commit()

    first, second = seed.create_sign_in_links(), seed.create_sign_in_links()

    assert [member.role for member, _ in second] == ["manager", "viewer"]
    client = app.test_client()
    assert [client.get(link).status_code for _, link in first] == [404, 404]
    assert [client.get(link).status_code for _, link in second] == [200, 200]
