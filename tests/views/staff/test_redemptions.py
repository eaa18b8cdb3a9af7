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

from tests.support.factories import MakeCustomer, MakeOffer
from webapp.accounts.models import AuditEntry
from webapp.core.errors import DomainError, FieldError, InvalidInput
from webapp.core.extensions import db
from webapp.customers.models import Customer
from webapp.offers.models import Offer
from webapp.redemptions import actions as redemption_actions
from webapp.redemptions import group_commit, hourly_counts
from webapp.redemptions import queries as redemption_queries
from webapp.redemptions import rollback as redemption_rollback
from webapp.redemptions.errors import RedemptionUnavailable
from webapp.redemptions.queries import RedemptionRecord
from webapp.redemptions.rules import Order, RedemptionRequest

ADA = RedemptionRequest(channel="form", code="SUMMER25", email="ada@example.com")
FORM = {"code": "summer 25", "email": "ADA@example.com"}


@pytest.fixture
def redemption(make_offer: MakeOffer, make_customer: MakeCustomer) -> RedemptionRecord:
    """A redemption by Ada."""
    make_offer(), make_customer()
    return group_commit.redeem(ADA)


def count_redemptions() -> int:
    return int(db.session.execute(text("select count(*) from redemption")).scalar_one())


def test_an_empty_list_explains_itself(staff: FlaskClient) -> None:
    assert "No redemptions yet" in staff.get("/redemptions").text


@pytest.mark.parametrize(
    ("query", "is_listed"),
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
        ("first=9999-12-31&last=9999-12-31", False),
        ("first=soon", False),
        ("last=2026-02-30", False),
    ],
)
def test_the_list_can_be_filtered(
    staff: FlaskClient, redemption: RedemptionRecord, query: str, is_listed: bool
) -> None:
    page = staff.get(f"/redemptions?{query}")

    assert page.status_code == 200
    assert (redemption.public_id in page.text) is is_listed


def test_the_question_before_undoing_a_redemption_says_that_it_is_final(
    staff: FlaskClient, redemption: RedemptionRecord
) -> None:
    page = staff.get(f"/redemptions/{redemption.public_id}").text

    assert "Undo this redemption? ada@example.com can then redeem the offer again. This is final." in page


@pytest.mark.parametrize("path", ["/redemptions", "/redemptions.csv"])
def test_a_reference_from_a_receipt_finds_this_redemption_only(
    staff: FlaskClient, redemption: RedemptionRecord, make_offer: MakeOffer, make_customer: MakeCustomer, path: str
) -> None:
    make_offer("WINTER"), make_customer("bob@example.com")
    winter = group_commit.redeem(RedemptionRequest(channel="form", code="WINTER", email="ada@example.com"))
    bob = group_commit.redeem(RedemptionRequest(channel="form", code="SUMMER25", email="bob@example.com"))
    search = f"{path}?who={redemption.public_id[:4].lower()}+{redemption.public_id[4:]}"

    found = staff.get(search).text

    assert redemption.public_id in found
    assert winter.public_id not in found
    assert bob.public_id not in found
    assert redemption.public_id in staff.get(f"{search}&code=SUMMER25").text
    assert redemption.public_id not in staff.get(f"{search}&code=WINTER").text


def test_the_export_for_the_reference_of_an_undone_redemption_has_no_rows(
    staff: FlaskClient, redemption: RedemptionRecord
) -> None:
    redemption_rollback.roll_back_redemption(redemption.public_id, "wrong customer", "staff")
    again = group_commit.redeem(ADA)

    assert again.public_id not in staff.get(f"/redemptions.csv?who={redemption.public_id}").text
    assert again.public_id in staff.get(f"/redemptions.csv?who={again.public_id}").text


def test_only_the_first_page_polls(staff: FlaskClient, make_offer: MakeOffer, make_customer: MakeCustomer) -> None:
    make_offer()
    emails = [make_customer(f"c{n}@example.com").email for n in range(51)]
    redemption_actions.redeem_all([RedemptionRequest(channel="api", code="SUMMER25", email=email) for email in emails])

    first = staff.get("/redemptions").text
    next_page = first.split('rel="next" href="')[1].split('"')[0].replace("&amp;", "&")
    second = staff.get(next_page).text

    assert "every 5s" in first
    assert "every 5s" not in second
    assert second.count("/redemptions/") - first.count("/redemptions/") < 0
    assert "c0@example.com" in first + second


def test_refresh_export_and_further_pages_keep_the_filters(
    staff: FlaskClient, make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    make_offer()
    emails = [make_customer(f"c{n}@example.com").email for n in range(101)]
    redemption_actions.redeem_all([RedemptionRequest(channel="api", code="SUMMER25", email=email) for email in emails])
    filters = "code=SUMMER25&channel=api&first=2020-01-01"

    first = unescape(staff.get(f"/redemptions?{filters}&who=&other=1").text)
    next_url = first.partition('rel="next" href="')[2].partition('"')[0]
    second = unescape(staff.get(next_url).text)

    assert f'hx-get="/redemptions?{filters}"' in first
    assert f'href="/redemptions.csv?{filters}"' in first
    assert next_url.startswith(f"/redemptions?{filters}&cursor=")
    assert f'href="/redemptions?{filters}"' in second
    assert f'rel="next" href="/redemptions?{filters}&cursor=' in second


def test_days_are_filtered_in_the_time_zone_of_the_user(staff: FlaskClient, redemption: RedemptionRecord) -> None:
    db.session.execute(text("update redemption set redeemed_at = '2026-05-31T22:30:00Z'"))
    db.session.execute(text("update staff_user set time_zone = 'Europe/Berlin'"))
    db.session.commit()

    pages = [staff.get(f"/redemptions?first={day}&last={day}").text for day in ("2026-05-31", "2026-06-01")]

    assert ["ada@example.com" in page for page in pages] == [False, True]


def test_staff_can_redeem_for_a_customer(
    staff: FlaskClient, make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    make_offer(), make_customer()

    response = staff.post("/redemptions/new", data=FORM)
    page = staff.get(response.location).text

    record = redemption_queries.list_latest_redemptions(None, 1)[0]
    assert (response.status_code, response.location) == (302, f"/redemptions/{record.public_id}")
    assert record.row.channel == "staff"
    assert "Summer (25%) was redeemed for ada@example.com." in page


def test_the_form_is_filled_from_the_check_of_eligibility(staff: FlaskClient) -> None:
    page = staff.get("/redemptions/new?code=SUMMER25&email=ada@example.com").text

    assert 'value="SUMMER25"' in page
    assert 'value="ada@example.com"' in page


@pytest.mark.parametrize(
    ("changes", "status", "message"),
    [
        ({"email": "bob@example.com"}, 409, "This customer does not exist"),
        ({"code": "WINTER"}, 404, "No offer has this code"),
        ({"code": ""}, 422, "Enter the code that the customer received"),
        ({"email": "ada"}, 422, "This email address is not valid"),
        ({}, 409, "has already redeemed this offer"),
    ],
)
def test_staff_see_the_full_refusal_reason_and_keep_their_input(
    staff: FlaskClient, redemption: RedemptionRecord, changes: dict[str, str], status: int, message: str
) -> None:
    response = staff.post("/redemptions/new", data=FORM | changes)

    assert response.status_code == status
    assert message in response.text
    assert f'value="{(FORM | changes)["email"]}"' in response.text
    assert count_redemptions() == 1


@pytest.mark.parametrize(
    ("error", "title"),
    [
        (RedemptionUnavailable(), "This is temporarily unavailable."),
        (DomainError("error", "Something went wrong on our side.", 500), "This did not work."),
        (DomainError("conflict", "There are too many concurrent requests.", 409), "The offer was not redeemed."),
        (DomainError("upload_broken", "The upload timed out.", 408), "This did not work."),
        (InvalidInput(FieldError("till", "till_missing", "Enter a till.")), "Please check what you entered."),
    ],
)
def test_an_error_that_the_input_did_not_cause_has_another_title(
    staff: FlaskClient, monkeypatch: pytest.MonkeyPatch, error: DomainError, title: str
) -> None:
    def fail(_request: RedemptionRequest) -> RedemptionRecord:
        raise error

    monkeypatch.setattr(group_commit, "redeem", fail)

    response = staff.post("/redemptions/new", data=FORM)

    assert response.status_code == error.status
    titles = re.findall(r"<strong>(.*?)</strong>\s*<ul[^>]*>\s*<li>(.*?)</li>", response.text, re.S)
    assert [tuple(map(unescape, pair)) for pair in titles] == [(title, error.message)]


def test_a_redemption_is_undone_with_a_reason(staff: FlaskClient, redemption: RedemptionRecord) -> None:
    response = staff.post(f"/redemptions/{redemption.public_id}/undo", data={"reason": "wrong customer"})

    page = staff.get(f"/redemptions/{redemption.public_id}").text
    assert response.status_code == 302
    assert "wrong customer" in page
    assert "The redemption was undone. ada@example.com can redeem Summer again." in page
    assert re.search(r">Undone by</dt>\s*<dd[^>]*>\s*Manager\s*</dd>", page)
    assert "Undo redemption" not in page
    assert count_redemptions() == 0


def test_undoing_without_a_reason_is_rejected(staff: FlaskClient, redemption: RedemptionRecord) -> None:
    response = staff.post(f"/redemptions/{redemption.public_id}/undo", data={"reason": " "})

    assert response.status_code == 422
    assert 'id="reason-error"' in response.text
    assert count_redemptions() == 1


def test_undoing_twice_is_refused(staff: FlaskClient, redemption: RedemptionRecord) -> None:
    staff.post(f"/redemptions/{redemption.public_id}/undo", data={"reason": "wrong customer"})

    response = staff.post(f"/redemptions/{redemption.public_id}/undo", data={"reason": "wrong customer"})

    assert response.status_code == 409
    assert "<strong>Nothing was changed.</strong>" in response.text
    assert "has already been undone" in response.text


def test_a_viewer_can_only_read(sign_in: Callable[..., FlaskClient], redemption: RedemptionRecord) -> None:
    client = sign_in("viewer")

    page = client.get(f"/redemptions/{redemption.public_id}")
    undo = client.post(f"/redemptions/{redemption.public_id}/undo", data={"reason": "x"})
    new_redemption = client.post("/redemptions/new", data=FORM)

    assert (page.status_code, undo.status_code, new_redemption.status_code) == (200, 403, 403)
    assert "Undo redemption" not in page.text
    assert count_redemptions() == 1


@pytest.mark.parametrize("path", ["/redemptions/nonsense", "/redemptions/" + "0" * 26])
def test_an_unknown_redemption_is_not_found(staff: FlaskClient, path: str) -> None:
    assert staff.get(path).status_code == 404


def test_the_export_lists_every_redemption_without_formulas(
    staff: FlaskClient, make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    make_offer(name="=SUM(A1)")
    make_customer(name="+Ada, the first"), make_customer("bob@example.com")
    order = Order("-1", 4999, "EUR")
    record = group_commit.redeem(
        RedemptionRequest(channel="api", code="SUMMER25", email="ada@example.com", order=order, api_key_id=1)
    )
    group_commit.redeem(RedemptionRequest(channel="form", code="SUMMER25", email="bob@example.com"))

    response = staff.get("/redemptions.csv")
    lines = response.text.splitlines()
    ada = staff.get("/redemptions.csv?who=ada@example.com")
    exported: list[dict[str, Any]] = list(csv.DictReader(io.StringIO(ada.text)))

    assert response.headers["Content-Disposition"] == 'attachment; filename="redemptions.csv"'
    assert len(lines) == 3
    assert len(exported) == 1
    assert response.mimetype == "text/csv"
    assert exported[0]["reference"] == record.public_id
    assert exported[0]["redeemed_at"] == f"{record.row.redeemed_at:%Y-%m-%dT%H:%M:%SZ}"
    assert (exported[0]["offer"], exported[0]["name"], exported[0]["order_id"]) == (
        "'=SUM(A1)",
        "'+Ada, the first",
        "'-1",
    )
    amounts = {"order_amount": "4999", "order_currency": "EUR", "discount_amount": "1250"}
    assert exported[0].items() >= {"email": "ada@example.com", "code": "SUMMER25", "channel": "api", **amounts}.items()


def test_the_export_distinguishes_a_discount_of_zero_from_an_unknown_one(
    staff: FlaskClient, make_offer: MakeOffer, make_customer: MakeCustomer
) -> None:
    make_offer()
    orders = {"ada@example.com": Order("A-1", 1, "EUR"), "bob@example.com": None}
    for email, order in orders.items():
        make_customer(email)
        group_commit.redeem(RedemptionRequest(channel="api", code="SUMMER25", email=email, order=order))

    rows = csv.DictReader(io.StringIO(staff.get("/redemptions.csv").text))

    assert {row["email"]: row["discount_amount"] for row in rows} == {"ada@example.com": "0", "bob@example.com": ""}


def test_the_list_says_where_undone_redemptions_are(staff: FlaskClient) -> None:
    assert "Undone redemptions are not listed here. See the customer's page" in staff.get("/redemptions").text


def test_an_empty_export_has_its_header(staff: FlaskClient) -> None:
    assert staff.get("/redemptions.csv?who=nobody@example.com").text.startswith("reference,offer,code,email")


def test_an_unknown_channel_is_ignored(staff: FlaskClient) -> None:
    assert staff.get("/redemptions?channel=%00").status_code == 200


def test_a_viewer_can_open_neither_forms_nor_the_export(
    sign_in: Callable[..., FlaskClient], make_offer: Callable[..., Offer]
) -> None:
    viewer = sign_in("viewer")
    offer_id = make_offer().id

    for path in ("/offers/new", f"/offers/{offer_id}/edit", "/redemptions/new", "/redemptions.csv"):
        assert viewer.get(path).status_code == 403


def test_a_search_for_a_rare_channel_continues_further_back(
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
    further_back = unescape(first[: first.index("Search further back")].rpartition('href="')[2].partition('"')[0])

    assert "No matches yet" in first
    assert "3 May 2020" in first
    assert "ada@example.com</a>" in staff.get(further_back).text


def test_an_undone_redemption_is_found_by_reference_and_audited(
    staff: FlaskClient, make_offer: Callable[..., Offer], make_customer: Callable[..., Customer]
) -> None:
    make_offer(), make_customer()
    redemption = group_commit.redeem(RedemptionRequest(channel="form", code="SUMMER25", email="ada@example.com"))
    staff.post(f"/redemptions/{redemption.public_id}/undo", data={"reason": "a mistake"})

    response = staff.get("/redemptions", query_string={"who": redemption.public_id})

    assert response.headers["Location"] == f"/redemptions/{redemption.public_id}"
    entry = db.session.scalars(select(AuditEntry).order_by(AuditEntry.id.desc())).first()
    assert entry is not None
    assert (entry.actor, entry.action, entry.subject) == ("manager@example.com", "redemption.undone", "SUMMER25")
    assert entry.detail == {"customer": redemption.customer_id, "reference": redemption.public_id}
