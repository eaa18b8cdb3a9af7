"""The essential requests and tasks on a Citus cluster: `make audit-citus`, see docs/testing.md."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from flask.testing import FlaskClient
from sqlalchemy import text

from tests.support import citus
from tests.support.campaigns import LaunchCampaign, create_customers, delivery_counts
from tests.support.factories import MakeCustomer, MakeOffer
from tests.support.imports import ImportFileFixture, import_counts
from tests.support.redemptions import ROLLBACK
from tests.support.smtp_relay import Relay
from tests.support.sql_statements import recorded_statements
from webapp.campaigns.content.placeholders import EmailContent
from webapp.campaigns.launch import actions as launch_actions
from webapp.campaigns.launch import preparation
from webapp.campaigns.sending import completion, sender
from webapp.core.extensions import db
from webapp.customers import actions as customer_actions
from webapp.customers.models import Customer
from webapp.customers.suppressions import actions as suppression_actions
from webapp.redemptions import actions as redemption_actions
from webapp.redemptions import count_queries, hourly_counts, personal_links
from webapp.redemptions import queries as redemption_queries
from webapp.redemptions import retention as redemption_retention
from webapp.redemptions import rollback as redemption_rollback
from webapp.redemptions.queries import KeysetCursor, RedemptionFilter, RedemptionRecord
from webapp.redemptions.rules import Order, RedemptionRequest
from webapp.retention import inactive_customers

pytestmark = pytest.mark.skipif(not citus.is_used(), reason="CITUS_URL is not set")

FIRST = RedemptionRequest(
    channel="api", code="SUMMER25", email="ada@example.com", api_key_id=1, order=Order("A-1"), metadata={"till": 1}
)
SECOND = replace(FIRST, email="bob@example.com", order=Order("A-2"))
NOW = datetime.now(UTC)


@pytest.fixture
def redeemed(make_offer: MakeOffer, make_customer: MakeCustomer) -> RedemptionRecord:
    """A redemption of an offer with a cap of two, and a second customer."""
    make_offer(max_redemptions=2)
    for request in (FIRST, SECOND):
        make_customer(str(request.email))
    return redeem(FIRST)


def redeem(request: RedemptionRequest) -> RedemptionRecord:
    [record] = redemption_actions.redeem_all([request])
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
            plan = "\n".join(line for (line,) in connection.execute(f"explain {statement}".encode(), values))
            assert set(re.findall(r"Task Count: (\d+)", plan)) <= {"1"}, plan
            if set(re.findall(r"\w+", statement)) & set(citus.list_distributed_tables()):
                assert "Task Count: 1" in plan


def test_every_interface_redeems_up_to_the_cap(
    client: FlaskClient, api: FlaskClient, staff: FlaskClient, make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    offer = make_offer(max_redemptions=4)
    customers = [make_customer(f"c{number}@example.com") for number in range(5)]
    token = personal_links.build_personal_url(offer.id, customers[2].id).rpartition("/")[2]
    by_api = {"code": "SUMMER25", "customer": {"email": "c0@example.com"}}
    by_form = {"code": "SUMMER25", "email": "c1@example.com"}
    key = {"Idempotency-Key": "k1"}

    first, repeat = (api.post("/api/v1/redemptions", json=by_api, headers=key) for _ in range(2))
    responses = [
        client.post("/redeem", data=by_form),
        client.post(f"/r/{token}"),
        staff.post("/redemptions/new", data=by_form | {"email": "c3@example.com"}),
    ]
    refused = client.post("/redeem", data=by_form | {"email": "c4@example.com"})
    undone = api.post(f"/api/v1/redemptions/{first.get_json()['id']}/rollback", json={"reason": "cancelled"})
    accepted = client.post("/redeem", data=by_form | {"email": "c4@example.com"})

    assert (first.status_code, repeat.status_code, repeat.get_json()["id"]) == (201, 200, first.get_json()["id"])
    assert [response.status_code for response in responses] == [200, 200, 302]
    assert (refused.status_code, undone.status_code, accepted.status_code) == (409, 200, 200)
    assert sorted(record.row.channel for record in redemption_queries.list_redemptions(RedemptionFilter(), 50)) == [
        "form",
        "form",
        "link",
        "staff",
    ]


PAGES = ("/", "/now", "/offers", "/offers/1", "/redemptions", "/redemptions.csv", "/customers", "/customers/1")
PATHS_OF_PROGRAMS = ("/metrics", "/readyz", "/api/v1/offers", "/api/v1/redemptions", "/api/v1/campaigns")


def test_staff_and_programs_get_responses(redeemed: RedemptionRecord, staff: FlaskClient, api: FlaskClient) -> None:
    statuses = {path: staff.get(path).status_code for path in PAGES}
    statuses |= {path: api.get(path).status_code for path in PATHS_OF_PROGRAMS}

    assert statuses == dict.fromkeys(PAGES + PATHS_OF_PROGRAMS, 200)


def test_an_offer_is_changed_after_it_was_found_by_its_code(redeemed: RedemptionRecord, api: FlaskClient) -> None:
    response = api.patch("/api/v1/offers/SUMMER25", json={"name": "Autumn", "max_redemptions": 3})

    assert (response.status_code, response.get_json()["name"]) == (200, "Autumn")


def test_hourly_counts_follow_redemptions_and_rollbacks(redeemed: RedemptionRecord) -> None:
    db.session.execute(text("update redemption set redeemed_at = :at"), {"at": NOW - timedelta(hours=3)})
    db.session.commit()

    hourly_counts.update_hourly_counts()
    [record] = redemption_queries.list_redemptions(RedemptionFilter(), 1)
    redeem(SECOND)
    counted = count_queries.count_redemptions([record.offer_id])
    redemption_rollback.roll_back_redemption(record.public_id, **ROLLBACK)

    assert counted == {record.offer_id: 2}
    assert count_queries.count_redemptions([record.offer_id]) == {record.offer_id: 1}
    assert sum(count for _, count in count_queries.count_redemptions_per_day(None, NOW - timedelta(days=2))) == 1


def test_an_import_updates_customers_and_rejects_taken_source_ids(import_file: ImportFileFixture) -> None:
    import_file("email,name,source_id\nada@example.com,Ada,C1\nbob@example.com,Bob,C2\n")

    row = import_file(
        "email,name,source_id,audience\nada@example.com,Countess,C1,Club\neve@example.com,Eve,C2,\nnew@example.com,N,C3,Club\n"
    )

    assert import_counts(row) == {"rows": 3, "created": 1, "updated": 1, "rejected": 1}
    assert db.session.execute(text("select count(*) from audience_member")).scalar_one() == 2


def test_a_suppression_survives_erasure_and_import(import_file: ImportFileFixture, make_customer: MakeCustomer) -> None:
    ada = make_customer()
    suppression_actions.add_suppression_by_staff("ada@example.com", "complained", "tests")

    customer_actions.erase_customer(ada.id, by="tests")
    import_file("email\nada@example.com\nbob@example.com\n")

    assert db.session.execute(text("select email, reason from suppression")).all() == [
        ("ada@example.com", "complained")
    ]


def test_a_campaign_and_its_reminder_are_sent(launch_campaign: LaunchCampaign, relay: Relay) -> None:
    create_customers(3)
    campaign = launch_campaign()
    sender.send_pending_emails()
    completion.finish_campaigns()
    redeem(replace(FIRST, email="c1@example.com"))
    reminder = launch_actions.launch_reminder(campaign.offer_id, EmailContent(), "tests").campaign
    preparation.prepare_campaign(reminder.id)
    sender.send_pending_emails()

    assert delivery_counts(campaign) == {"total": 3, "sent": 3}
    assert relay.recipients == {"c0@example.com": 2, "c1@example.com": 1, "c2@example.com": 2}


def test_old_data_and_inactive_customers_are_erased(redeemed: RedemptionRecord) -> None:
    redemption_rollback.roll_back_redemption(redeemed.public_id, **ROLLBACK)
    redeem(SECOND)
    db.session.execute(text("update customer set active_at = :at"), {"at": NOW - timedelta(days=90)})
    db.session.commit()

    found = redemption_retention.count_old_redemptions(0, 10)
    for _ in redemption_retention.clear_old_redemption_data(0):
        db.session.commit()
    for _ in inactive_customers.erase_inactive_customers(30):
        db.session.commit()

    assert (found, redemption_retention.count_old_redemptions(0, 10)) == (2, 0)
    # Both have just redeemed or had a redemption undone.
    assert db.session.query(Customer).filter(Customer.erased_at.is_not(None)).count() == 0
