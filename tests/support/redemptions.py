"""Redemptions in tests: counts in the database, and concurrent calls."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import text

from webapp.core.errors import DomainError
from webapp.core.extensions import db
from webapp.redemptions import group_commit
from webapp.redemptions.errors import RedemptionRefused
from webapp.redemptions.rules import RedemptionRequest

ROLLBACK = {"reason": "order cancelled", "by": "ann"}


def count_redemptions() -> int:
    return int(db.session.execute(text("select count(*) from redemption")).scalar_one())


def redeemed_counter(offer_id: int) -> int:
    return int(
        db.session.execute(
            text("select redeemed from offer_counter where offer_id = :id"), {"id": offer_id}
        ).scalar_one()
    )


def count_lock_waiters(kind: str) -> int:
    """Count the sessions that wait for a lock of this type."""
    statement = text(
        "select count(*) from pg_locks l join pg_stat_activity a using (pid) "
        "where not l.granted and l.locktype = :kind and a.datname = current_database()"
    )
    return int(db.session.execute(statement, {"kind": kind}).scalar_one())


def refusal_key(request: RedemptionRequest) -> str:
    with pytest.raises(RedemptionRefused) as error:
        group_commit.redeem(request)
    return error.value.key


def run_concurrently(app: Flask, *calls: Callable[[], object]) -> list[Any]:
    """Make all calls at once; return results and DomainErrors in any order."""
    ready, results = threading.Barrier(len(calls)), []

    def run(call: Callable[[], object]) -> None:
        with app.app_context():
            ready.wait()
            try:
                results.append(call())
            except DomainError as error:
                results.append(error)
            finally:
                db.session.rollback()

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == len(calls)
    return results
