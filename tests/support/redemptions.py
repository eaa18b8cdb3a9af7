"""Redemptions in tests: what the database holds, and many at the same time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import text

from webapp.core.errors import DomainError
from webapp.core.extensions import db
from webapp.customers.models import Customer
from webapp.offers.models import Offer
from webapp.redemptions import group_commit
from webapp.redemptions.errors import RedemptionRefused
from webapp.redemptions.rules import RedemptionRequest

MakeOffer = Callable[..., Offer]
MakeCustomer = Callable[..., Customer]
ROLLBACK = {"reason": "order cancelled", "by": "ann"}


def count_redemptions() -> int:
    return int(db.session.execute(text("select count(*) from redemption")).scalar_one())


def redeemed_counter(offer_id: int) -> int:
    return int(db.session.execute(text("select redeemed from offer where id = :id"), {"id": offer_id}).scalar_one())


def count_lock_waiters(kind: str) -> int:
    """How many wait for a lock of this kind."""
    found = text(
        "select count(*) from pg_locks l join pg_stat_activity a using (pid) "
        "where not l.granted and l.locktype = :kind and a.datname = current_database()"
    )
    return int(db.session.execute(found, {"kind": kind}).scalar_one())


def refusal_key(ask: RedemptionRequest) -> str:
    with pytest.raises(RedemptionRefused) as error:
        group_commit.redeem(ask)
    return error.value.key


def run_concurrently(app: Flask, *deeds: Callable[[], object]) -> list[Any]:
    """What each deed answered (or the DomainError it raised) when all were done at once."""
    ready, answers = threading.Barrier(len(deeds)), []

    def run(deed: Callable[[], object]) -> None:
        with app.app_context():
            ready.wait()
            try:
                answers.append(deed())
            except DomainError as error:
                answers.append(error)
            finally:
                db.session.rollback()

    threads = [threading.Thread(target=run, args=(deed,)) for deed in deeds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == len(deeds)
    return answers
