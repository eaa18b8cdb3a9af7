"""Query plans on large tables: queries use indexes and read few rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from flask import Flask

from benchmarks import growth_tables
from tests.support.query_plans import explain_statements, plan_nodes
from webapp.core import signing_keys
from webapp.core.extensions import db
from webapp.core.settings import Settings
from webapp.customers import queries as customer_queries
from webapp.redemptions import actions as redemption_actions
from webapp.redemptions import address_limit, count_queries, group_commit, guessing
from webapp.redemptions import facts as redemption_facts
from webapp.redemptions import queries as redemption_queries
from webapp.redemptions.queries import KeysetCursor, RedemptionFilter
from webapp.redemptions.rules import RedemptionRequest

pytestmark = pytest.mark.slow
LARGE = {"customer", "redemption", "rollback", "audience_member", "redemption_hour", "hour_total"}
# Enough for the planner to choose the same plans as with a million rows of each.
CUSTOMERS, ROWS = 100_000, 150_000
# The most rows that a list may read for one page.
MAX_ROWS = 60_000


@pytest.fixture(scope="module")
def filled(session_app: Flask, test_settings: Settings) -> Iterator[psycopg.Connection]:
    """Large tables; emptied afterwards."""
    with session_app.app_context(), psycopg.connect(test_settings.libpq_url, autocommit=True) as connection:
        connection.execute(EMPTY)
        signing_keys.clear_key_cache()
        growth_tables.fill(connection, CUSTOMERS)
        growth_tables.redeem(connection, CUSTOMERS, ROWS)
        connection.execute(ROLLBACKS)
        connection.execute("vacuum (analyze)")
        yield connection
        db.session.remove()
        connection.execute(EMPTY)


EMPTY = (
    "truncate customer, audience, audience_member, offer, offer_code, redemption, rollback, redemption_hour,"
    " redemption_total, hour_total, api_key, rate_hit, code_miss, address_customers, address_excess"
    " restart identity cascade"
)
ROLLBACKS = """
insert into rollback (customer_id, offer_id, redeemed_at, channel, rolled_back_by, reason)
select customer_id, offer_id, redeemed_at - interval '1 year', channel, 'staff', 'mistake' from redemption
where customer_id % 10 = 0
"""


def assert_uses_indexes(connection: psycopg.Connection, run: Callable[[], object], max_rows: int) -> None:
    for statement, plan in explain_statements(connection, run):
        for node in plan_nodes(plan):
            table, kind = node.get("Relation Name"), node["Node Type"]
            assert not (table in LARGE and "Seq Scan" in kind), f"{kind} on {table}: {statement}"
            if table in LARGE:
                rows = (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
                assert rows <= max_rows, f"{rows} rows of {table} read: {statement}"


def make_request(n: int, **values: Any) -> RedemptionRequest:
    return RedemptionRequest(channel="api", code="OFFER7", email=f"customer.{n}@example.com", api_key_id=1, **values)


LOOK_UPS: dict[str, Callable[[], object]] = {
    "open offers of a customer": lambda: [redemption_facts.load_current_offer_facts(n) for n in (77, 500)],
    "a customer by email": lambda: customer_queries.find_customer_by_email("customer.77@example.com"),
    "validation": lambda: redemption_actions.validate_redemption(make_request(77)),
    "facts by email": lambda: redemption_facts.load_facts([make_request(78)]),
    "facts of a repeat": lambda: redemption_facts.load_facts([make_request(70, idempotency_key="k", body_hash=b"1")]),
    "facts by personal code": lambda: redemption_facts.load_facts(
        [RedemptionRequest(channel="form", code="OFFER77KQ4XM2T", email="x@y.example")]
    ),
    "facts by source id": lambda: redemption_facts.load_facts(
        [RedemptionRequest(channel="api", code="OFFER7", source_id="A-1")]
    ),
    "facts by link": lambda: redemption_facts.load_facts(
        [RedemptionRequest(channel="link", offer_id=7, customer_id=77)]
    ),
    "facts of many": lambda: redemption_facts.load_facts([make_request(n) for n in range(1, 65)]),
    "facts of very many": lambda: redemption_facts.load_facts([make_request(n) for n in range(1, 257)]),
    "redeeming": lambda: group_commit.redeem(make_request(79)),
    "a receipt": lambda: redemption_queries.find_current_redemption(7, 77),
    "one customer's": lambda: redemption_queries.list_customer_redemptions(77),
    "redeemed among": lambda: redemption_queries.find_redeemed_customer_ids(7, list(range(1, 501))),
    "is a code blocked": lambda: guessing.is_code_blocked("OFFER77KQ4XM2T"),
    "counting a customer of an address": lambda: address_limit.count_customer("192.0.2.1", "OFFER7", "x@y.example"),
}


@pytest.mark.parametrize("name", LOOK_UPS)
def test_a_lookup_uses_indexes(filled: psycopg.Connection, name: str) -> None:
    assert_uses_indexes(filled, LOOK_UPS[name], max_rows=1000)


LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
LAST_WEEK = datetime.now(UTC) - timedelta(days=7)
LISTS: dict[str, Callable[[], object]] = {
    "redemptions": lambda: redemption_queries.list_redemptions(RedemptionFilter(), 50),
    "redemptions, later page": lambda: redemption_queries.list_redemptions(
        RedemptionFilter(), 50, KeysetCursor(LAST_WEEK, 5, 5)
    ),
    "of an offer": lambda: redemption_queries.list_redemptions(RedemptionFilter(offer_id=7), 50),
    "of a customer": lambda: redemption_queries.list_redemptions(RedemptionFilter(customer_id=7), 50),
    "of days": lambda: redemption_queries.list_redemptions(RedemptionFilter(since=LAST_WEEK), 50),
    "of days without any": lambda: redemption_queries.list_redemptions(RedemptionFilter(until=LONG_AGO), 50),
    "by a usual channel": lambda: redemption_queries.list_redemptions(RedemptionFilter(channel="link"), 50),
    "by an unused channel": lambda: redemption_queries.scan_redemptions(RedemptionFilter(channel="staff"), 50),
    "by an unused channel, later page": lambda: redemption_queries.scan_redemptions(
        RedemptionFilter(channel="staff"), 50, KeysetCursor(LAST_WEEK, 5, 5)
    ),
    "customers": lambda: customer_queries.list_customers(),
    "customers by email": lambda: customer_queries.list_customers("customer.77@"),
    "customers by name": lambda: customer_queries.list_customers("customer 77"),
    "customers by a very common name": lambda: customer_queries.list_customers("customer"),
    "customers by an unknown name": lambda: customer_queries.list_customers("nobody"),
    "customers before, by name": lambda: customer_queries.list_customers("customer 77", before=50_000),
    "of an offer by an unused channel": lambda: redemption_queries.scan_redemptions(
        RedemptionFilter(offer_id=7, channel="staff"), 50
    ),
    "failed attempts of all offers": lambda: guessing.list_top_guessing_alerts(10),
    "an offer's days": lambda: count_queries.count_redemptions_per_day(7, LAST_WEEK),
    "the days of all offers": lambda: count_queries.count_redemptions_per_day(None, LAST_WEEK),
    "the totals of all offers": lambda: count_queries.count_redemptions(range(1, growth_tables.OFFERS + 1)),
}


@pytest.mark.parametrize("name", LISTS)
def test_a_list_reads_few_rows(filled: psycopg.Connection, name: str) -> None:
    assert_uses_indexes(filled, LISTS[name], max_rows=MAX_ROWS)
