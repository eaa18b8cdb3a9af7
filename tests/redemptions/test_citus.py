"""Statements of redeeming on a Citus cluster, see `make audit-citus`."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import psycopg
import pytest

from tests.support import citus
from tests.support.factories import MakeCustomer, MakeOffer
from tests.support.redemptions import ROLLBACK
from tests.support.sql_statements import recorded_statements
from webapp.redemptions import actions as redemption_actions
from webapp.redemptions import queries as redemption_queries
from webapp.redemptions import rollback as redemption_rollback
from webapp.redemptions.queries import KeysetCursor, RedemptionFilter, RedemptionRecord
from webapp.redemptions.rules import Order, RedemptionRequest

pytestmark = pytest.mark.skipif(not citus.is_used(), reason="CITUS_URL is not set")

FIRST = RedemptionRequest(channel="api", code="SUMMER25", email="ada@example.com", api_key_id=1, order=Order("A-1"))
SECOND = replace(FIRST, email="bob@example.com", order=Order("A-2"))


@pytest.fixture
def redeemed(make_offer: MakeOffer, make_customer: MakeCustomer) -> RedemptionRecord:
    """A redemption of an offer with a cap of two, and a second customer."""
    make_offer(max_redemptions=2)
    for request in (FIRST, SECOND):
        make_customer(str(request.email))
    [record] = redemption_actions.redeem_all([FIRST])
    assert isinstance(record, RedemptionRecord)
    return record


ACTIONS: dict[str, Callable[[RedemptionRecord], object]] = {
    "redeem": lambda _: redemption_actions.redeem_all([SECOND]),
    "repeat": lambda _: redemption_actions.redeem_all([FIRST]),
    "roll back": lambda record: redemption_rollback.roll_back_redemption(record.public_id, **ROLLBACK),
    "find": lambda record: redemption_queries.find_redemption(record.public_id),
    "list": lambda record: redemption_queries.list_redemptions(
        RedemptionFilter(offer_id=record.offer_id), 50, KeysetCursor.from_record(record)
    ),
}


@pytest.mark.parametrize("name", ACTIONS)
def test_statements_about_one_offer_need_one_shard(redeemed: RedemptionRecord, database_url: str, name: str) -> None:
    with recorded_statements() as recorded:
        ACTIONS[name](redeemed)

    # Values are inserted by the client: Citus cannot explain an INSERT of a SELECT with parameters.
    with psycopg.connect(database_url, cursor_factory=psycopg.ClientCursor) as connection:
        for statement, values in recorded:
            if statement.startswith("begin"):
                continue
            plan = "\n".join(line for (line,) in connection.execute(f"explain {statement}".encode(), values))
            assert set(re.findall(r"Task Count: (\d+)", plan)) <= {"1"}, plan
            if set(re.findall(r"\w+", statement)) & set(citus.list_distributed_tables()):
                assert "Task Count: 1" in plan
