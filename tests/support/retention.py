"""Retention in tests: aged data, runs and their results."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from sqlalchemy import select

from tests.support.sql_statements import run_sql
from webapp.core import task_queue
from webapp.core.extensions import db
from webapp.core.settings import Settings
from webapp.customers import queries as customer_queries
from webapp.redemptions import group_commit
from webapp.redemptions import queries as redemption_queries
from webapp.redemptions.rules import Order, RedemptionRequest
from webapp.retention.models import RetentionRun

DAYS = 100
# A little more and a little less than a period of `DAYS` days.
OVER, UNDER = timedelta(days=DAYS, minutes=5), timedelta(days=DAYS, minutes=-5)

SetPeriods = Callable[..., Settings]


def run_retention() -> None:
    task_queue.run("retention.run")
    db.session.rollback()
    db.session.expire_all()


def run_retention_without_rollbacks() -> None:
    """Run retention while a table is missing, so that customers cannot be erased."""
    run_sql("alter table rollback rename to hidden")
    try:
        run_retention()
    finally:
        db.session.rollback()
        run_sql("alter table hidden rename to rollback")


def load_runs() -> dict[str, tuple[int, bool]]:
    """Return the removed rows and the completeness of the last run, by kind."""
    db.session.rollback()
    db.session.expire_all()
    return {run.kind: (run.removed, run.is_complete) for run in db.session.scalars(select(RetentionRun))}


def allow_another_run() -> None:
    run_sql("update retention_run set started_at = now() - interval '1 hour'")


def add_audit_entry(age: timedelta, action: str = "shop.saved") -> None:
    run_sql(
        "insert into audit_entry (at, actor, action, subject) values (now() - :age, 'tests', :action, 'Shop')",
        age=age,
        action=action,
    )


def redeem(code: str = "SUMMER25", email: str = "ada@example.com") -> redemption_queries.RedemptionRecord:
    return group_commit.redeem(
        RedemptionRequest(
            channel="api",
            code=code,
            email=email,
            order=Order("A-1", 4999, "EUR"),
            metadata={"gift": "poems"},
            api_key_id=1,
            idempotency_key="key",
            body_hash=b"hash",
        )
    )


def make_older(age: timedelta, table: str = "redemption", column: str = "redeemed_at") -> None:
    run_sql(f"update {table} set {column} = {column} - cast(:age as interval)", age=age)


def age_customers() -> None:
    """Make all customers look as if they had last been edited or imported long ago."""
    run_sql("update customer set active_at = now() - interval '1000 days', created_at = now() - interval '1000 days'")


def is_erased(customer_id: int) -> bool:
    db.session.rollback()
    db.session.expire_all()
    customer = customer_queries.find_customer(customer_id)
    assert customer is not None
    return customer.erased_at is not None
