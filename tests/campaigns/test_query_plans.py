"""Staff pages about large campaigns read only batch rows and a few index entries."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from flask import Flask

from benchmarks import growth_tables
from tests.support.query_plans import explain_statements, plan_nodes
from tests.support.sql_statements import recorded_statements
from webapp.campaigns import queries as campaign_queries
from webapp.campaigns import stats_queries
from webapp.campaigns.deliveries import queries as delivery_queries
from webapp.campaigns.models import Campaign
from webapp.core.extensions import db
from webapp.core.settings import Settings
from webapp.customers.models import Customer

pytestmark = pytest.mark.slow
CUSTOMERS, BATCHES, ISSUES = 100_000, 2000, 4000
LARGE = {"customer", "mail_issue", "batch"}
FILL = f"""
insert into campaign (offer_id, subject, text, status, launched_at, prepared_at, sending_since, total)
  select g, 's', 't', case g when 1 then 'sending' else 'done' end,
    now() - interval '1 hour', now() - interval '1 hour', now() - interval '1 hour', {CUSTOMERS}
  from generate_series(1, 20) g;
insert into batch (campaign_id, seq, first_id, last_id, gaps, status, windows, window_start, window_end, sent)
  select c, s, s * 50 + 1, s * 50 + 50, (array[s * 50 + 1] || array_fill(1, array[49]))::bigint[],
    case when c = 1 and s > 1500 then 'pending' else 'done' end,
    case when c = 1 and s > 1500 then '{{}}' else array[0, s] end,
    case when c = 1 and s > 1500 then 0 else 50 end, case when c = 1 and s > 1500 then 0 else 50 end,
    case when c = 1 and s > 1500 then 0 else 50 end
  from generate_series(1, 20) c, generate_series(0, {BATCHES} - 1) s;
insert into mail_issue (campaign_id, customer_id, state, smtp_code, text)
  select c, g * 15, (array['failed', 'deferred', 'skipped', 'uncertain'])[1 + g % 4], 550, '5.' || g % 7 || '.1 no'
  from generate_series(1, {ISSUES}) g, generate_series(1, 20) c;
"""
EMPTY = (
    "truncate customer, audience, audience_member, offer, offer_code, campaign, batch, batch_cursor, mail_issue"
    " restart identity cascade"
)


@pytest.fixture(scope="module")
def large_tables(session_app: Flask, test_settings: Settings) -> Iterator[psycopg.Connection]:
    """Create 20 large campaigns, one of them sending; empty the tables afterwards."""
    with session_app.app_context(), psycopg.connect(test_settings.libpq_url, autocommit=True) as connection:
        connection.execute(EMPTY)
        growth_tables.fill(connection, CUSTOMERS)
        connection.execute(FILL)
        connection.execute("vacuum (analyze)")
        yield connection
        db.session.remove()
        connection.execute(EMPTY)


def find_one_delivery() -> object:
    return delivery_queries.find_delivery(db.session.get_one(Campaign, 1), db.session.get_one(Customer, 77_777))


# Name: (query, rows of batches that it may read, rows of each other table that it may read).
QUERIES: dict[str, tuple[Callable[[], object], int, int]] = {
    "progress": (lambda: stats_queries.get_campaign_stats(1), BATCHES, ISSUES),
    "replies of the causes": (
        lambda: stats_queries.list_example_replies(1, stats_queries.get_campaign_stats(1).causes[:8]),
        BATCHES,
        ISSUES,
    ),
    "one delivery": (find_one_delivery, BATCHES - 1500, 10),
    "deliveries of a customer": (lambda: delivery_queries.list_customer_deliveries(60_001), BATCHES - 1500 + 20, 20),
    "failed deliveries": (lambda: delivery_queries.list_recipients(1, "failed", after=30_000), 60, 200),
    "deferred deliveries": (
        lambda: delivery_queries.list_recipients(1, "deferred", after=30_000),
        60,
        ISSUES // 4 + 200,
    ),
    "unresolved deliveries of a campaign": (lambda: campaign_queries.count_unresolved(1), ISSUES, ISSUES),
    "deliveries of a cause": (lambda: delivery_queries.list_recipients(1, "failed", code=550, cause="5.2.1"), 60, 200),
    "sent deliveries": (lambda: delivery_queries.list_recipients(1, "sent", after=30_000), 10, 200),
    "unresolved deliveries": (lambda: campaign_queries.list_unresolved_by_campaign(), 20 * ISSUES, 20 * ISSUES),
}


@pytest.mark.parametrize("name", QUERIES)
def test_queries_of_staff_pages_read_few_rows(large_tables: psycopg.Connection, name: str) -> None:
    run, max_batches, max_others = QUERIES[name]
    for statement, plan in explain_statements(large_tables, run):
        rows_read = {"batch": 0, "mail_issue": 0, "customer": 0}
        for node in plan_nodes(plan):
            table, kind = node.get("Relation Name"), node["Node Type"]
            if table in LARGE:
                # The planner may scan the batches for sums over a campaign; no other table is scanned.
                assert table == "batch" or "Seq Scan" not in kind, f"{kind} on {table}: {statement}"
                rows_read[table] += _rows(node)
        assert rows_read["batch"] <= max_batches * (20 if "Seq Scan" in str(plan) else 1), statement
        assert max(rows_read["mail_issue"], rows_read["customer"]) <= max_others, statement


def _rows(node: dict[str, Any]) -> int:
    return int((node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"])


def test_progress_needs_two_statements(large_tables: psycopg.Connection) -> None:
    with recorded_statements() as executed:
        stats_queries.list_example_replies(1, stats_queries.get_campaign_stats(1).causes[:8])
    assert len(executed) == 2
