"""Retention on large tables: every statement uses an index, and a step reads few rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import psycopg
import pytest
from flask import Flask

from benchmarks import growth_tables
from tests.support.query_plans import explain_statements, plan_nodes
from webapp.accounts import audit_retention
from webapp.campaigns import retention as campaign_retention
from webapp.core.extensions import db
from webapp.core.settings import Settings
from webapp.redemptions import retention as redemption_retention
from webapp.retention import inactive_customers

pytestmark = pytest.mark.slow
LARGE = {"customer", "redemption", "rollback", "mail_issue", "batch", "audit_entry"}
# Enough for the planner to choose the same plans as with a million rows of each.
CUSTOMERS, ROWS, ENTRIES, CAMPAIGNS = 100_000, 150_000, 150_000, 20
DAYS = 100

FILL = """
insert into rollback (customer_id, offer_id, redeemed_at, channel, rolled_back_by, reason, rolled_back_at)
select customer_id, offer_id, redeemed_at - interval '1 year', channel, 'staff', 'mistake', redeemed_at from redemption
where customer_id % 4 = 0;
update customer set active_at = now() - id * interval '1 minute';
insert into audit_entry (at, actor, action) select now() - n * interval '1 minute', 'staff', 'shop.saved'
from generate_series({entries}, 1, -1) n;
insert into campaign (offer_id, kind, subject, text, status, launched_at, finished_at, sent_in_batches)
select n, 'announcement', 'Summer', 'Hello', 'done', now() - n * interval '10 days', now() - n * interval '10 days', 0
from generate_series(1, {campaigns}) n;
insert into batch (campaign_id, seq, first_id, last_id, gaps, status)
select c.id, s, 1 + s * 500, 500 + s * 500,
  array_append(array[1 + s * 500]::bigint[], 1) || array_fill(1::bigint, array[498]), 'done'
from campaign c, generate_series(0, {customers} / 500 - 1) s;
insert into mail_issue (campaign_id, customer_id, state, smtp_code, text)
select c.id, n, 'failed', 550, '5.1.1 <c' || n || '@example.com>' from campaign c, generate_series(1, 10000) n;
"""
# The audit log is append-only; the owner of the table may switch that off.
EMPTY = (
    "alter table audit_entry disable trigger user;"
    " truncate customer, audience, audience_member, offer, offer_code, redemption, rollback, redemption_hour,"
    " redemption_total, hour_total, campaign, batch, mail_issue, audit_entry, redemption_retention"
    " restart identity cascade;"
    " alter table audit_entry enable trigger user"
)


@pytest.fixture(scope="module")
def filled(session_app: Flask, test_settings: Settings) -> Iterator[psycopg.Connection]:
    """Large tables; emptied afterwards."""
    with session_app.app_context(), psycopg.connect(test_settings.libpq_url, autocommit=True) as connection:
        connection.execute(EMPTY)
        growth_tables.fill(connection, CUSTOMERS)
        growth_tables.redeem(connection, CUSTOMERS, ROWS, full=True)
        fill = FILL.format(entries=ENTRIES, campaigns=CAMPAIGNS, customers=CUSTOMERS)
        connection.execute(fill.encode())
        connection.execute("vacuum (analyze)")
        yield connection
        db.session.remove()
        connection.execute(EMPTY)


def first_steps(steps: Iterator[int], count: int = 3) -> Callable[[], None]:
    """Return a function that takes the first steps and rolls each back."""

    def take() -> None:
        for _, _removed in zip(range(count), steps, strict=False):
            pass
        db.session.rollback()

    return take


RUNS: dict[str, Callable[[], Callable[[], object]]] = {
    "redemptions": lambda: first_steps(redemption_retention.clear_old_redemption_data(DAYS)),
    "undone redemptions": lambda: first_steps(redemption_retention.clear_old_redemption_data(36_500)),
    "replies": lambda: first_steps(campaign_retention.shorten_old_replies(DAYS)),
    "audit entries": lambda: first_steps(audit_retention.delete_old_audit_entries(DAYS)),
    "customers": lambda: first_steps(inactive_customers.erase_inactive_customers(30), 1),
    "count redemptions": lambda: lambda: redemption_retention.count_old_redemptions(DAYS, 10_000),
    "count replies": lambda: lambda: campaign_retention.count_campaigns_with_old_replies(DAYS, 10_000),
    "count audit entries": lambda: lambda: audit_retention.count_old_audit_entries(DAYS, 10_000),
    "count customers": lambda: lambda: inactive_customers.count_candidates(30, 10_000),
}


@pytest.mark.parametrize("name", RUNS)
def test_retention_reads_few_rows_by_index(filled: psycopg.Connection, name: str) -> None:
    for statement, plan in explain_statements(filled, RUNS[name]()):
        for node in plan_nodes(plan):
            table, kind = node.get("Relation Name"), node["Node Type"]
            if table in LARGE:
                assert "Seq Scan" not in kind, f"{kind} on {table}: {statement}"
                rows = (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
                assert rows <= 20_000, f"{rows} rows of {table} read: {statement}"
