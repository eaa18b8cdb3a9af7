"""Redemptions that staff enter name the user: in the row, in lists and exports, in JSON and in the audit log."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import replace

import pytest
from flask.testing import FlaskClient
from sqlalchemy import select, text, update

from tests.support.factories import MakeCustomer, MakeOffer
from webapp.accounts import api_key_actions
from webapp.accounts.models import AuditEntry, StaffUser
from webapp.core.errors import DomainError
from webapp.core.extensions import db
from webapp.core.request_origin import RequestOrigin
from webapp.redemptions import actions as redemption_actions
from webapp.redemptions import export, group_commit
from webapp.redemptions import queries as redemption_queries
from webapp.redemptions import rollback as redemption_rollback
from webapp.redemptions.queries import RedemptionFilter
from webapp.redemptions.rules import RedemptionRequest, StaffEntry


@pytest.fixture
def request_by_ann(
    make_offer: MakeOffer, make_customer: MakeCustomer, make_staff_user: Callable[..., StaffUser]
) -> RedemptionRequest:
    """A request for Ada that Ann enters."""
    make_offer(), make_customer()
    ann = make_staff_user("manager", email="ann@example.com", time_zone="UTC")
    staff = StaffEntry(ann.id, ann.email, RequestOrigin("203.0.113.7", 12))
    return RedemptionRequest(channel="staff", code="SUMMER25", email="ada@example.com", staff=staff)


def audit_entries() -> list[tuple[object, ...]]:
    db.session.rollback()
    columns = (AuditEntry.actor, AuditEntry.subject, AuditEntry.detail, AuditEntry.address, AuditEntry.staff_session_id)
    entries = select(*columns).where(AuditEntry.action == "redemption.entered").order_by(AuditEntry.id)
    return [tuple(entry) for entry in db.session.execute(entries)]


def test_the_row_and_the_audit_log_name_the_user(request_by_ann: RedemptionRequest) -> None:
    record = group_commit.redeem(request_by_ann)

    found = redemption_queries.find_redemption(record.public_id)
    assert found is not None
    assert (found.entered_by, found.row.staff_user_id) == ("ann@example.com", record.row.staff_user_id)
    assert audit_entries() == [
        ("ann@example.com", "SUMMER25", {"customer": record.customer_id}, "203.0.113.7", 12),
    ]


def test_requests_of_several_users_in_one_group_keep_their_origins(
    request_by_ann: RedemptionRequest, make_customer: MakeCustomer
) -> None:
    for name in ("bob", "cid"):
        make_customer(f"{name}@example.com")
    by_bob = StaffEntry(99, "bob@example.com", RequestOrigin("198.51.100.1", 13))
    requests = [
        request_by_ann,
        replace(request_by_ann, email="bob@example.com", staff=by_bob),
        RedemptionRequest(channel="form", code="SUMMER25", email="cid@example.com"),
    ]

    redemption_actions.redeem_all(requests)

    assert [(entry[0], entry[3], entry[4]) for entry in audit_entries()] == [
        ("ann@example.com", "203.0.113.7", 12),
        ("bob@example.com", "198.51.100.1", 13),
    ]


def test_what_is_refused_is_not_recorded(request_by_ann: RedemptionRequest, make_customer: MakeCustomer) -> None:
    make_customer("bob@example.com")
    db.session.execute(text("update offer set max_redemptions = 1; update offer_counter set max_redemptions = 1"))
    db.session.commit()

    results = redemption_actions.redeem_all([request_by_ann, replace(request_by_ann, email="bob@example.com")])
    with pytest.raises(DomainError):
        group_commit.redeem(request_by_ann)

    assert isinstance(results[1], DomainError)
    assert len(audit_entries()) == 1


def test_an_undone_redemption_still_names_the_user(request_by_ann: RedemptionRequest) -> None:
    record = group_commit.redeem(request_by_ann)

    undone = redemption_rollback.roll_back_redemption(record.public_id, "a mistake", by="bob@example.com")

    assert (undone.entered_by, undone.row.rolled_back_by) == ("ann@example.com", "bob@example.com")


def test_the_export_names_the_user(request_by_ann: RedemptionRequest) -> None:
    group_commit.redeem(request_by_ann)

    lines = export.generate_redemption_csv(redemption_queries.stream_redemptions(RedemptionFilter()))

    assert [row["entered_by"] for row in csv.DictReader(io.StringIO("".join(lines)))] == ["ann@example.com"]


def test_the_pages_name_the_user(sign_in: Callable[..., FlaskClient], request_by_ann: RedemptionRequest) -> None:
    client = sign_in("viewer")
    record = group_commit.redeem(request_by_ann)
    db.session.execute(update(StaffUser).where(StaffUser.email == "ann@example.com").values(name="Ann Miller"))
    db.session.commit()

    page = client.get(f"/redemptions/{record.public_id}").text

    assert page.index("Entered by") < page.index("Ann Miller")
    assert "Ann Miller" in client.get("/redemptions").text


def test_the_page_of_a_customers_own_redemption_names_no_user(
    staff: FlaskClient, request_by_ann: RedemptionRequest
) -> None:
    record = group_commit.redeem(replace(request_by_ann, channel="form", staff=None))

    assert "Entered by" not in staff.get(f"/redemptions/{record.public_id}").text


def test_a_user_who_no_longer_exists_is_not_forgotten(staff: FlaskClient, request_by_ann: RedemptionRequest) -> None:
    record = group_commit.redeem(replace(request_by_ann, staff=StaffEntry(99, "gone@example.com", RequestOrigin())))

    assert "Deleted user" in staff.get(f"/redemptions/{record.public_id}").text


def test_the_form_records_the_signed_in_user(staff: FlaskClient, request_by_ann: RedemptionRequest) -> None:
    form = {"code": "SUMMER25", "email": "ada@example.com"}

    staff.post("/redemptions/new", data=form, environ_base={"REMOTE_ADDR": "198.51.100.1"})

    assert [(entry[0], entry[3]) for entry in audit_entries()] == [("manager@example.com", "198.51.100.1")]


def test_the_api_names_no_user_to_a_key_that_may_only_read(
    request_by_ann: RedemptionRequest, client: FlaskClient
) -> None:
    record = group_commit.redeem(request_by_ann)
    key = api_key_actions.create_api_key("Reports", ["read", "redeem"], by="tests")
    headers = {"Authorization": f"Bearer {key}"}
    path = f"/api/v1/redemptions/{record.public_id}"

    texts = [
        client.get("/api/v1/redemptions", headers=headers).text,
        client.get(path, headers=headers).text,
        client.post(f"{path}/rollback", headers=headers, json={"reason": "a mistake"}).text,
    ]

    assert all('"channel":"staff"' in text and "ann@example.com" not in text for text in texts)


def test_the_api_names_the_user(
    api: FlaskClient, request_by_ann: RedemptionRequest, make_customer: MakeCustomer
) -> None:
    make_customer("bob@example.com")
    group_commit.redeem(request_by_ann)
    own = api.post("/api/v1/redemptions", json={"code": "SUMMER25", "customer": {"email": "bob@example.com"}})

    listed = api.get("/api/v1/redemptions").json or {}

    assert {item["channel"]: item["entered_by"] for item in listed["redemptions"]} == {
        "staff": "ann@example.com",
        "api": None,
    }
    assert (own.json or {})["entered_by"] is None
