"""Nothing is redeemed without a valid counter of the offer, and only the requests for that offer fail."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import Connection, text

from tests.support.factories import MakeCustomer, MakeOffer
from tests.support.redemptions import count_redemptions, redeemed_counter
from webapp.core.errors import DomainError
from webapp.core.extensions import db
from webapp.redemptions import actions as redemption_actions
from webapp.redemptions import facts as redemption_facts
from webapp.redemptions import group_commit
from webapp.redemptions.errors import InvalidOfferCounter
from webapp.redemptions.queries import RedemptionRecord
from webapp.redemptions.rules import RedemptionRequest

FROZEN: dict[str, Any] = {"frozen_at": text("now()")}
BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "missing": ({"max_redemptions": 2}, "delete from offer_counter where offer_id = :id"),
    "missing, frozen": ({"max_redemptions": 2, **FROZEN}, "delete from offer_counter where offer_id = :id"),
    "missing, no cap": ({**FROZEN}, "delete from offer_counter where offer_id = :id"),
    "cap only of the offer": (
        {"max_redemptions": 2, **FROZEN},
        "update offer_counter set max_redemptions = null where offer_id = :id",
    ),
    "cap only of the counter": (
        {"max_redemptions": 2, **FROZEN},
        "update offer set max_redemptions = null where id = :id",
    ),
}


def make_request(email: str, code: str = "BROKEN") -> RedemptionRequest:
    return RedemptionRequest(channel="form", code=code, email=email)


def outcomes(results: list[RedemptionRecord | DomainError]) -> list[str]:
    return [result.key if isinstance(result, DomainError) else "redeemed" for result in results]


@pytest.fixture
def emails(make_customer: MakeCustomer) -> list[str]:
    return [make_customer(f"c{n}@example.com").email for n in range(3)]


@pytest.mark.parametrize("name", BROKEN)
def test_an_invalid_counter_fails_the_requests_of_its_offer_only(
    app: Flask, make_offer: MakeOffer, emails: list[str], caplog: pytest.LogCaptureFixture, name: str
) -> None:
    values, statement = BROKEN[name]
    make_offer("FREE", max_redemptions=5)
    broken_id = make_offer("BROKEN", **values).id
    db.session.execute(text(statement), {"id": broken_id})
    db.session.commit()
    requests = [make_request(email, code) for code in ("BROKEN", "FREE") for email in (*emails, "nobody@example.com")]

    with caplog.at_level(logging.ERROR):
        results = redemption_actions.redeem_all(requests)

    assert outcomes(results) == ["error"] * 4 + ["redeemed"] * 3 + ["customer_unknown"]
    assert count_redemptions() == 3
    assert f"offer {broken_id} cannot be redeemed" in caplog.text


def test_a_counter_that_disappears_after_the_insert_fails_the_requests_of_its_offer_only(
    monkeypatch: pytest.MonkeyPatch, make_offer: MakeOffer, emails: list[str]
) -> None:
    broken, free = (make_offer(code, max_redemptions=5, **FROZEN) for code in ("BROKEN", "FREE"))
    delete = text("delete from offer_counter where offer_id = :id")
    look_up, broken_id = redemption_actions._look_up, broken.id
    deleted: list[object] = []

    def delete_counter_first(connection: Connection, *args: Any) -> dict[int, RedemptionRecord | DomainError]:
        if not deleted:
            deleted.append(connection.execute(delete, {"id": broken_id}))
        return look_up(connection, *args)

    monkeypatch.setattr(redemption_actions, "_look_up", delete_counter_first)
    results = redemption_actions.redeem_all(
        [make_request(email, code) for code in ("BROKEN", "FREE") for email in emails]
    )

    assert outcomes(results) == ["error"] * 3 + ["redeemed"] * 3
    assert (count_redemptions(), redeemed_counter(free.id), redeemed_counter(broken_id)) == (3, 3, 0)


def test_facts_of_one_request_need_a_valid_counter(app: Flask, make_offer: MakeOffer, emails: list[str]) -> None:
    make_offer("BROKEN")
    db.session.execute(text("delete from offer_counter"))

    with pytest.raises(InvalidOfferCounter):
        redemption_actions.validate_redemption(make_request(emails[0]))


def test_the_offers_of_a_customer_leave_out_one_without_a_counter(
    make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    make_offer("FREE"), make_offer("BROKEN")
    customer = make_customer()
    db.session.execute(
        text("delete from offer_counter where offer_id = (select offer_id from offer_code where code = 'BROKEN')")
    )

    found = redemption_facts.load_current_offer_facts(customer.id)

    assert [facts.offer.code for facts in found if facts.offer] == ["FREE"]


def test_the_error_of_an_invalid_counter_has_status_500(make_offer: MakeOffer, emails: list[str]) -> None:
    make_offer("BROKEN")
    db.session.execute(text("delete from offer_counter"))
    db.session.commit()

    with pytest.raises(InvalidOfferCounter) as error:
        group_commit.redeem(make_request(emails[0]))

    assert (error.value.key, error.value.status) == ("error", 500)
