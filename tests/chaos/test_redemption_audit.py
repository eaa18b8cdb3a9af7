"""The audits after a crash detect lost redemptions, lost emails and untrue responses."""

from __future__ import annotations

from typing import cast

import pytest

from tests.chaos.ha import faults
from tests.support import live_server
from tests.support.chaos import durable_database
from tests.support.chaos.concurrent_clients import ApiResponse, ShopClient
from tests.support.chaos.durable_database import PopulatedDatabase
from tests.support.chaos.redemption_load import RedemptionLoad, check_redemptions, lost_redemptions, redemption_load
from tests.support.chaos.running_campaign import start_campaign

UNSAVED = "The database is unavailable. This attempt redeemed nothing."


class Rows(PopulatedDatabase):
    """The rows of an offer without a database."""

    def __init__(self, stored: str, counter: int | None = None) -> None:
        self.stored = set(stored)
        self.counter = len(stored) if counter is None else counter

    def redeemed_emails(self, code: str) -> set[str]:
        return self.stored

    def redemption_count(self, code: str) -> int:
        return self.counter


def load(*responses: tuple[str, int, str]) -> RedemptionLoad:
    """Return the responses to the redemptions of customers with one letter."""
    load = RedemptionLoad(cast("ShopClient", None), "CODE")
    load.responses = [(email, ApiResponse(status, {"detail": detail}, {})) for email, status, detail in responses]
    return load


RESPONSES = load(("a", 201, ""), ("b", 201, ""), ("c", 503, UNSAVED), ("d", 503, "Not known."), ("e", 0, ""))


@pytest.mark.parametrize("stored", ["ab", "abd", "abe", "abde"])
def test_rows_that_agree_with_the_responses_are_accepted(stored: str) -> None:
    check_redemptions(Rows(stored), RESPONSES)

    assert lost_redemptions(Rows(stored), RESPONSES) == set()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (Rows("a"), "1 confirmed redemptions are missing"),
        (Rows("abx"), "1 redemptions were refused by their response"),
        (Rows("abc"), "1 redemptions are saved, though the response denies it"),
        (Rows("ab", 3), "the counter shows 3 redemptions, there are 2"),
    ],
)
def test_each_contradiction_is_detected(rows: Rows, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_redemptions(rows, RESPONSES)


def test_an_unexpected_status_is_detected() -> None:
    with pytest.raises(AssertionError, match=r"the statuses \[201, 500\]"):
        check_redemptions(Rows("a"), load(("a", 201, ""), ("b", 500, "")))


def test_lost_redemptions_are_those_with_a_response_and_without_a_row() -> None:
    assert lost_redemptions(Rows("bd"), RESPONSES) == {"a"}


@pytest.mark.parametrize(
    ("since", "gap"),
    [(0, 7), (4, 6), (6, 4), (9.5, 3), (13, 0), (99, 0)],
)
def test_a_gap_counts_from_the_moment_of_the_fault(since: float, gap: float) -> None:
    # The times are not in their order: clients add them from several threads.
    assert faults.longest_gap([2, 1, 3, 10, 13], since) == gap


@pytest.mark.slow
def test_a_run_that_loses_a_redemption_and_an_email_is_reported() -> None:
    result = faults.FaultResult("nothing", "none")
    with (
        durable_database.start_durable_database(300) as database,
        live_server.web_server(database.settings) as web,
        start_campaign(database, "hold", 1, rate=0, seconds=0.01) as campaign,
    ):
        with redemption_load(database, web, "LOST", pause=0.2) as traffic:
            traffic.wait_for(201)
        campaign.wait_done()
        faults.audit_responses(result, database, campaign, traffic)
        assert (result.lost, result.missing, result.broken) == (0, 0, [])

        lost = traffic.emails_with(201)[0]
        with database.connect() as connection:
            connection.execute(
                "delete from redemption where customer_id = (select id from customer where email = %s)", [lost]
            )
        campaign.relay.lines.remove(campaign.relay.emails(campaign.id)[0])
        faults.audit_responses(result, database, campaign, traffic)

    assert (result.lost, result.missing) == (1, 1)
    assert any("1 missing" in text for text in result.broken)
    assert "1 confirmed redemptions are missing" in result.broken
