from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from html import unescape
from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import select, text

from webapp.accounts.models import AuditEntry
from webapp.core.extensions import db
from webapp.customers.models import Customer
from webapp.offers.models import Offer
from webapp.redemptions import actions as redemption_actions
from webapp.redemptions import group_commit, hourly_counts
from webapp.redemptions import queries as redemption_queries
from webapp.redemptions.queries import RedemptionRecord
from webapp.redemptions.rules import Order, RedemptionRequest

MakeOffer = Callable[..., Offer]
MakeCustomer = Callable[..., Customer]
ADA = RedemptionRequest(channel="form", code="SUMMER25", email="ada@example.com")
TYPED = {"code": "summer 25", "email": "ADA@example.com"}


@pytest.fixture
def done(make_offer: MakeOffer, make_customer: MakeCustomer) -> RedemptionRecord:
    """A redemption by Ada."""
    make_offer(), make_customer()
    return group_commit.redeem(ADA)


def rows() -> int:
    return int(db.session.execute(text("select count(*) from redemption")).scalar_one())


def test_an_empty_list_says_what_to_do_first(staff: FlaskClient) -> None:
    assert "No redemptions yet" in staff.get("/redemptions").text


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("", True),
        ("who=ADA@example.com", True),
        ("who=bob@example.com", False),
        ("who=@", False),
        ("who=nonsense", False),
        ("code=summer-25", True),
        ("code=WINTER", False),
        ("code=S%C3%9C%00", False),
        ("channel=form", True),
        ("channel=api", False),
        ("first=2020-01-01&last=2098-12-31", True),
        ("last=2020-01-01", False),
        ("first=2098-01-01", False),
        ("first=9999-12-31&last=9999-12-31", True),
        ("first=soon", True),
    ],
)
def test_the_list_is_narrowed(staff: FlaskClient, done: RedemptionRecord, query: str, found: bool) -> None:
    page = staff.get(f"/redemptions?{query}")

    assert page.status_code == 200
    assert (done.public_id in page.text) is found


def test_a_reference_from_a_receipt_finds_the_customers_redemptions(staff: FlaskClient, done: RedemptionRecord) -> None:
    assert done.public_id in staff.get(f"/redemptions?who={done.public_id.lower()}").text


def test_only_the_first_page_renews_itself(
    staff: FlaskClient, make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    make_offer()
    emails = [make_customer(f"c{n}@example.com").email for n in range(51)]
    redemption_actions.redeem_all([RedemptionRequest(channel="api", code="SUMMER25", email=email) for email in emails])

    first = staff.get("/redemptions").text
    following = first.split('rel="next" href="')[1].split('"')[0].replace("&amp;", "&")
    second = staff.get(following).text

    assert "every 5s" in first
    assert "every 5s" not in second
    assert second.count("/redemptions/") - first.count("/redemptions/") < 0
    assert "c0@example.com" in first + second


def test_redeeming_by_hand(staff: FlaskClient, make_offer: MakeOffer, make_customer: MakeCustomer) -> None:
    make_offer(), make_customer()

    answer = staff.post("/redemptions/new", data=TYPED)

    made = redemption_queries.list_latest_redemptions(None, 1)[0]
    assert (answer.status_code, answer.location) == (302, f"/redemptions/{made.public_id}")
    assert made.row.channel == "staff"


@pytest.mark.parametrize(
    ("typed", "status", "sentence"),
    [
        ({"email": "bob@example.com"}, 409, "This customer does not exist"),
        ({"code": "WINTER"}, 404, "know this code"),
        ({"code": ""}, 422, "Enter the code from our email"),
        ({"email": "ada"}, 422, "This email address is not valid"),
        ({}, 409, "has already redeemed this offer"),
    ],
)
def test_staff_hear_the_full_reason_and_keep_what_they_typed(
    staff: FlaskClient, done: RedemptionRecord, typed: dict[str, str], status: int, sentence: str
) -> None:
    answer = staff.post("/redemptions/new", data=TYPED | typed)

    assert answer.status_code == status
    assert sentence in answer.text
    assert f'value="{(TYPED | typed)["email"]}"' in answer.text
    assert rows() == 1


def test_undoing_with_a_reason(staff: FlaskClient, done: RedemptionRecord) -> None:
    answer = staff.post(f"/redemptions/{done.public_id}/undo", data={"reason": "wrong customer"})

    page = staff.get(f"/redemptions/{done.public_id}").text
    assert answer.status_code == 302
    assert "wrong customer" in page
    assert re.search(r">Undone by</dt>\s*<dd[^>]*>\s*Manager\s*</dd>", page)
    assert "Undo redemption" not in page
    assert rows() == 0


def test_undoing_without_a_reason_is_refused(staff: FlaskClient, done: RedemptionRecord) -> None:
    answer = staff.post(f"/redemptions/{done.public_id}/undo", data={"reason": " "})

    assert answer.status_code == 422
    assert 'id="reason-error"' in answer.text
    assert rows() == 1


def test_undoing_what_somebody_else_undid_says_so(staff: FlaskClient, done: RedemptionRecord) -> None:
    staff.post(f"/redemptions/{done.public_id}/undo", data={"reason": "wrong customer"})

    answer = staff.post(f"/redemptions/{done.public_id}/undo", data={"reason": "wrong customer"})

    assert answer.status_code == 409
    assert "was already undone" in answer.text


def test_a_viewer_looks_and_changes_nothing(sign_in: Callable[..., FlaskClient], done: RedemptionRecord) -> None:
    client = sign_in("viewer")

    page = client.get(f"/redemptions/{done.public_id}")
    undo = client.post(f"/redemptions/{done.public_id}/undo", data={"reason": "x"})
    by_hand = client.post("/redemptions/new", data=TYPED)

    assert (page.status_code, undo.status_code, by_hand.status_code) == (200, 403, 403)
    assert "Undo redemption" not in page.text
    assert rows() == 1


@pytest.mark.parametrize("path", ["/redemptions/nonsense", "/redemptions/" + "0" * 26])
def test_what_is_not_there_is_not_found(staff: FlaskClient, path: str) -> None:
    assert staff.get(path).status_code == 404


def test_the_export_has_every_redemption_and_runs_in_no_spreadsheet(
    staff: FlaskClient, make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    make_offer(name="=SUM(A1)")
    make_customer(name="+Ada, the first"), make_customer("bob@example.com")
    order = Order("-1", 4999, "EUR")
    group_commit.redeem(
        RedemptionRequest(channel="api", code="SUMMER25", email="ada@example.com", order=order, api_key_id=1)
    )
    group_commit.redeem(RedemptionRequest(channel="form", code="SUMMER25", email="bob@example.com"))

    answer = staff.get("/redemptions.csv")
    every = answer.text.splitlines()
    ada = staff.get("/redemptions.csv?who=ada@example.com")
    found: list[dict[str, Any]] = list(csv.DictReader(io.StringIO(ada.text)))

    assert answer.headers["Content-Disposition"] == 'attachment; filename="redemptions.csv"'
    assert len(every) == 3
    assert len(found) == 1
    assert (found[0]["offer"], found[0]["name"], found[0]["order_id"]) == ("'=SUM(A1)", "'+Ada, the first", "'-1")
    assert (found[0]["email"], found[0]["discount_amount"]) == ("ada@example.com", "1250")


def test_the_export_of_nothing_has_its_headings(staff: FlaskClient) -> None:
    assert staff.get("/redemptions.csv?who=nobody@example.com").text.startswith("reference,offer,code,email")


def test_a_channel_that_does_not_exist_narrows_nothing(staff: FlaskClient) -> None:
    assert staff.get("/redemptions?channel=%00").status_code == 200


def test_a_viewer_is_not_shown_a_form_that_would_refuse_and_gets_no_export(
    sign_in: Callable[..., FlaskClient], make_offer: Callable[..., Offer]
) -> None:
    viewer = sign_in("viewer")
    number = make_offer().id

    for path in ("/offers/new", f"/offers/{number}/edit", "/redemptions/new", "/redemptions.csv"):
        assert viewer.get(path).status_code == 403


def test_with_a_channel_that_is_hardly_ever_used_staff_are_led_further_back(
    staff: FlaskClient, make_offer: Any, make_customer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redemption_queries, "SCAN_LIMIT", 1)
    offer, ada, bob = make_offer(), make_customer(), make_customer("bob@example.com")
    db.session.execute(
        text("insert into redemption values (:ada, :row, '2020-05-01', 'staff'), (:bob, :row, '2020-05-03', 'form')"),
        {"ada": ada.id, "bob": bob.id, "row": offer.id},
    )
    db.session.commit()
    hourly_counts.update_hourly_counts()

    first = staff.get("/redemptions?channel=staff").text
    further = unescape(first[: first.index("Search further back")].rpartition('href="')[2].partition('"')[0])

    assert "No matches yet" in first
    assert "3 May 2020" in first
    assert "ada@example.com</a>" in staff.get(further).text


def test_what_was_undone_is_found_by_its_reference_and_stands_in_the_audit_trail(
    staff: FlaskClient, make_offer: Callable[..., Offer], make_customer: Callable[..., Customer]
) -> None:
    make_offer(), make_customer()
    done = group_commit.redeem(RedemptionRequest(channel="form", code="SUMMER25", email="ada@example.com"))
    staff.post(f"/redemptions/{done.public_id}/undo", data={"reason": "a mistake"})

    found = staff.get("/redemptions", query_string={"who": done.public_id})

    assert found.headers["Location"] == f"/redemptions/{done.public_id}"
    entry = db.session.scalars(select(AuditEntry).order_by(AuditEntry.id.desc())).first()
    assert entry is not None
    assert (entry.actor, entry.action, entry.subject) == ("manager@example.com", "redemption.undone", "SUMMER25")
    assert entry.detail == {"customer": done.customer_id, "reference": done.public_id}
