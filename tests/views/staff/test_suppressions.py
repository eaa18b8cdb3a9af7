"""Staff pages of the suppression list, its import and its export."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select

from tests.support.factories import MakeCustomer
from tests.support.imports import import_counts, rejected_rows
from tests.support.suppressions import add_suppression, suppression_reasons
from webapp.accounts.models import AuditEntry
from webapp.campaigns import queries as campaign_queries
from webapp.campaigns.launch import actions as launch_actions
from webapp.core.email_addresses import hash_email
from webapp.core.extensions import db
from webapp.customers import actions as customer_actions
from webapp.customers import queries as customer_queries
from webapp.customers.imports import processing as import_processing
from webapp.customers.imports import queries as import_queries
from webapp.customers.imports import suppression_staging
from webapp.customers.models import CustomerImport, Suppression
from webapp.customers.queries import AudienceTotals
from webapp.customers.suppressions import queries as suppression_queries

LIST = "/customers/do-not-mail"


def audit_entries() -> list[tuple[str, str]]:
    rows = db.session.execute(select(AuditEntry.action, AuditEntry.subject).order_by(AuditEntry.id))
    return [(row.action, row.subject) for row in rows]


def test_the_list_is_searched_by_address_hash_and_reason(staff: FlaskClient) -> None:
    add_suppression("ada@example.com", "bounced", words="550 5.1.1 <unknown>")
    add_suppression("bob@example.com", "complained", source="api")
    add_suppression(hash_email("eve@example.com"), "unsubscribed")

    page = staff.get(LIST).text
    assert [part in page for part in ("ada@example.com", "550 5.1.1 &lt;unknown&gt;", "bob@example.com")] == [True] * 3
    assert "Erased customer" in page
    assert "bob@" not in staff.get(f"{LIST}?q=ada").text
    assert "ada@" not in staff.get(f"{LIST}?reason=complained").text
    assert "Erased customer" in staff.get(f"{LIST}?q=EVE@example.com").text
    assert "No matching addresses" in staff.get(f"{LIST}?q=eve@example").text


def test_a_long_list_is_paginated(staff: FlaskClient) -> None:
    for n in range(120):
        db.session.add(Suppression(email=f"c{n:03}@example.com", reason="bounced", source="import"))
        db.session.add(Suppression(email=f"c{n:03}@example.net", reason="complained", source="import"))
        db.session.add(Suppression(email=f"d{n:03}@example.net", reason="bounced", source="import"))
    db.session.commit()
    assert "360 addresses" in staff.get(LIST).text
    filters = "?q=c&reason=bounced"
    listed, url = [], LIST + filters
    while url:
        page = staff.get(url).text
        listed += [n for n in range(120) if f"c{n:03}@example.com</bdi>" in page]
        next_url = page.partition('rel="next" href="')[2].partition('"')[0]
        url = next_url.replace("&amp;", "&")
        assert "example.net" not in page
    assert listed == list(range(120))
    assert "First page" in page
    assert f'href="{LIST}{filters.replace("&", "&amp;")}"' in page
    assert 'rel="prev"' not in page


def test_the_form_is_filled_with_the_address_of_its_link(staff: FlaskClient) -> None:
    assert 'value="ada+1@example.com"' in staff.get(f"{LIST}/new?email=ada%2B1@example.com").text


def test_an_address_is_added(staff: FlaskClient, make_customer: MakeCustomer) -> None:
    ada = make_customer("ada@example.com")
    response = staff.post(
        f"{LIST}/new", data={"email": " ADA@example.com", "reason": "unsubscribed", "words": "by phone"}
    )
    assert response.headers["Location"] == f"/customers/{ada.id}"
    staff.post(f"{LIST}/new", data={"email": "nobody@example.com", "reason": "complained"})
    assert suppression_reasons() == {"ada@example.com": "unsubscribed", "nobody@example.com": "complained"}
    assert audit_entries() == [
        ("suppression.added", f"customer {ada.id}"),
        ("suppression.added", "an address without a customer"),
    ]
    page = staff.get(f"/customers/{ada.id}").text
    assert [
        part in page for part in ("Unsubscribed", "by phone", "Added by staff", "Remove from suppression list")
    ] == [True] * 4


def test_adding_a_listed_address_keeps_the_earlier_details(staff: FlaskClient) -> None:
    add_suppression("ada@example.com", "bounced", words="550 5.1.1 User unknown")
    form = {"email": "ada@example.com", "reason": "unsubscribed", "words": "by phone"}
    page = staff.post(f"{LIST}/new", data=form, follow_redirects=True).text
    assert "was already on the suppression list (Bounced). The reason is now Unsubscribed." in page
    row = db.session.get_one(Suppression, "ada@example.com")
    assert (row.reason, row.detail) == ("unsubscribed", "by phone; before: bounced, 550 5.1.1 User unknown")

    page = staff.post(f"{LIST}/new", data={**form, "reason": "bounced"}, follow_redirects=True).text
    assert "is already on the suppression list (Unsubscribed). The entry was not changed." in page
    assert db.session.get_one(Suppression, "ada@example.com").detail == row.detail


def test_an_added_address_is_shown_as_typed(staff: FlaskClient) -> None:
    page = staff.post(f"{LIST}/new", data={"email": "山田@例え.jp", "reason": "bounced"}, follow_redirects=True).text
    assert "山田@例え.jp was added to the suppression list." in page
    assert suppression_reasons() == {"山田@xn--r8jz45g.jp": "bounced"}


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"email": "nonsense", "reason": "bounced"}, "This email address is not valid"),
        ({"email": "a@example.com", "reason": "because"}, "Choose a reason from the list"),
        ({"email": "Offers@example.com", "reason": "bounced"}, "Emails are sent from this address"),
    ],
)
def test_an_invalid_entry_is_reported_at_its_field(staff: FlaskClient, form: dict[str, Any], message: str) -> None:
    response = staff.post(f"{LIST}/new", data=form)
    assert (response.status_code, message in response.text, form["email"] in response.text) == (422, True, True)
    assert suppression_reasons() == {}


def test_a_manager_removes_a_customer_after_a_warning(staff: FlaskClient, make_customer: MakeCustomer) -> None:
    ada = make_customer("ada@example.com", suppressed="complained")
    page = staff.get(f"{LIST}/lift?email=ada@example.com").text
    assert "marked an email as spam" in page
    assert suppression_reasons() == {"ada@example.com": "complained"}

    response = staff.post(f"{LIST}/lift", data={"email": "ada@example.com"})

    assert response.headers["Location"] == f"/customers/{ada.id}"
    assert suppression_reasons() == {}
    assert audit_entries() == [("suppression.lifted", f"customer {ada.id}")]


@pytest.mark.parametrize(
    ("reason", "warning"),
    [("bounced", "reported that this address does not exist."), ("unsubscribed", "This person unsubscribed.")],
)
def test_the_warning_before_a_removal_depends_on_the_reason(
    staff: FlaskClient, make_customer: MakeCustomer, reason: str, warning: str
) -> None:
    make_customer("ada@example.com", suppressed=reason)

    assert warning in staff.get(f"{LIST}/lift?email=ada@example.com").text


def test_an_entry_of_a_campaign_names_its_offer(
    staff: FlaskClient, make_customer: MakeCustomer, make_offer: Callable[..., Any]
) -> None:
    make_customer("ada@example.com")
    for code in ("SUMMER25", "WINTER"):
        launch_actions.launch_announcement(make_offer(code, name=code.title()).id, "tests")
    add_suppression("ada@example.com", "unsubscribed", source=2)

    for path in (LIST, "/customers/1", f"{LIST}/lift?email=ada@example.com"):
        assert re.search(r'<a href="/campaigns/2">\s*Campaign for Winter\s*</a>', staff.get(path).text)


def test_the_removed_address_is_that_of_the_form(staff: FlaskClient, make_customer: MakeCustomer) -> None:
    for name in ("ada", "bob"):
        make_customer(f"{name}@example.com", suppressed="complained")

    staff.post(f"{LIST}/lift?email=ada@example.com", data={"email": "bob@example.com"})

    assert suppression_reasons() == {"ada@example.com": "complained"}


def test_only_an_admin_removes_addresses_without_customers(sign_in: Callable[..., FlaskClient]) -> None:
    add_suppression("nobody@example.com")
    add_suppression(hash_email("eve@example.com"), "unsubscribed")
    assert sign_in("manager").post(f"{LIST}/lift", data={"email": "nobody@example.com"}).status_code == 403
    admin = sign_in("admin")
    admin.post(f"{LIST}/lift", data={"email": "nobody@example.com"})
    assert admin.post(f"{LIST}/lift", data={"email": "never@example.com"}).status_code == 404
    page = admin.post(f"{LIST}/lift", data={"email": hash_email("eve@example.com")}, follow_redirects=True).text
    assert "The address of an erased customer was removed from the suppression list." in page
    assert suppression_reasons() == {}


def test_a_viewer_can_only_read(sign_in: Callable[..., FlaskClient], make_customer: MakeCustomer) -> None:
    make_customer("ada@example.com", suppressed="bounced")
    viewer = sign_in("viewer")
    assert viewer.get(LIST).status_code == 200
    assert "Remove from suppression list" not in viewer.get("/customers/1").text
    for path in ("/new", ".csv", "/import", "/lift?email=ada@example.com"):
        assert viewer.get(f"{LIST}{path}").status_code == 403
    assert viewer.post(f"{LIST}/lift", data={"email": "ada@example.com"}).status_code == 403
    assert viewer.post(f"{LIST}/import", data={}).status_code == 403


def upload(client: FlaskClient, file: str | bytes) -> CustomerImport:
    data = file.encode() if isinstance(file, str) else file
    response = client.post(f"{LIST}/import", data={"file": (io.BytesIO(data), "list.csv")})
    assert response.status_code == 302, response.text
    import_id = int(response.headers["Location"].rpartition("/")[2])
    import_processing.run_import(import_id)
    row = import_queries.find_import(import_id)
    assert row is not None
    return row


def test_a_list_of_another_mailing_tool_is_imported(staff: FlaskClient, make_customer: MakeCustomer) -> None:
    ada = make_customer("ada@example.com")
    make_customer("bob@example.com", suppressed="complained")
    row = upload(
        staff,
        "E-Mail;Reason;Name\n"
        "ADA@example.com;Bounce;x\n"
        "bob@example.com;unsubscribed;x\n"
        "new@example.com;;x\n"
        "eve@example.com;bounced;x\n"
        "eve@example.com;spam;x\n"
        "nonsense;bounced;x\n"
        "zoe@example.com;because;x\n"
        "short@example.com\n"
        "long@example.com;spam;x;y\n"
        ";bounced\n",
    )
    assert (row.status, row.by) == ("done", "manager@example.com")
    assert import_counts(row) == {"rows": 10, "created": 6, "unchanged": 1, "duplicates": 1, "rejected": 2}
    assert rejected_rows(row) == [
        (7, "email_invalid"),
        (8, "reason_unknown"),
        (9, "cells_odd"),
        (10, "cells_odd"),
        (11, "cells_missing"),
    ]
    assert suppression_reasons() == {
        "ada@example.com": "bounced",
        "bob@example.com": "complained",
        "new@example.com": "unsubscribed",
        "eve@example.com": "complained",
        # An unknown reason counts as unsubscribed, to be safe.
        "zoe@example.com": "unsubscribed",
        "short@example.com": "unsubscribed",
        "long@example.com": "complained",
    }
    assert customer_queries.find_suppression_reasons([ada.id]) == {ada.id: "bounced"}
    page = staff.get(f"/customers/imports/{row.id}").text
    assert "Addresses imported" in page
    assert "is not unsubscribed" in page
    assert page.count(">Imported") == 3
    assert customer_queries.count_customers().value == 2


def test_a_list_without_an_email_column_is_rejected(staff: FlaskClient) -> None:
    response = staff.post(f"{LIST}/import", data={"file": (io.BytesIO(b"name\nx\n"), "list.csv")})
    assert (response.status_code, "no column named email" in response.text) == (422, True)
    response = staff.post(f"{LIST}/import", data={"file": (io.BytesIO(b""), "")}, content_type="multipart/form-data")
    assert (response.status_code, "Choose a file." in response.text) == (422, True)


def test_an_upload_without_the_csrf_token_is_rejected(csrf_client: FlaskClient, staff: FlaskClient) -> None:
    staff.application.config["WTF_CSRF_ENABLED"] = True
    response = staff.post(f"{LIST}/import", data={"file": (io.BytesIO(b"email\na@example.com\n"), "list.csv")})
    assert response.status_code == 400
    assert db.session.scalars(select(CustomerImport)).all() == []


def test_an_export_can_be_imported_unchanged(staff: FlaskClient, app: Flask) -> None:
    before = {
        "=cmd@example.com": "bounced",
        "bob@example.com": "complained",
        hash_email("eve@example.com"): "unsubscribed",
    }
    for email, reason in before.items():
        add_suppression(email, reason)
    file = staff.get(f"{LIST}.csv")
    assert file.mimetype == "text/csv"
    assert b"'=cmd@example.com" in file.data
    db.session.query(Suppression).delete()
    db.session.commit()

    row = upload(staff, file.data)

    assert import_counts(row) == {"rows": 3, "created": 3}
    assert suppression_reasons() == before
    assert ("suppressions.exported", "suppression list") in audit_entries()


def test_an_imported_hash_suppresses_the_customer_with_that_address(
    staff: FlaskClient, make_customer: MakeCustomer
) -> None:
    ada, bob = make_customer("ada@example.com"), make_customer("bob@example.com", suppressed="bounced")
    unknown_hash = hash_email("nobody@example.com")
    rows = {
        hash_email("ada@example.com"): "unsubscribed",
        hash_email("bob@example.com"): "complained",
        "bob@example.com": "bounced",
        unknown_hash: "complained",
    }
    row = upload(staff, "email,reason\n" + "".join(f"{email},{reason}\n" for email, reason in rows.items()))
    assert import_counts(row) == {"rows": 4, "created": 2, "updated": 1, "duplicates": 1}
    assert "the strongest reason counts" in staff.get(f"/customers/imports/{row.id}").text
    assert suppression_reasons() == {
        "ada@example.com": "unsubscribed",
        "bob@example.com": "complained",
        unknown_hash: "complained",
    }
    # The same customers are counted as suppressed and skipped.
    assert customer_queries.find_suppression_reasons([ada.id, bob.id]).keys() == {ada.id, bob.id}
    assert customer_queries.count_audience_members(None) == AudienceTotals(total=2, suppressed=2)
    assert not campaign_queries.has_unsuppressed_customers(None)


def test_a_customer_erased_during_an_import_stays_hashed(
    staff: FlaskClient, make_customer: MakeCustomer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada = make_customer("ada@example.com")
    hashed, merge = hash_email("ada@example.com"), suppression_staging.merge_rows

    def erase_first(*arguments: Any) -> Any:
        customer_actions.erase_customer(ada.id, "tests")
        return merge(*arguments)

    monkeypatch.setattr(suppression_staging, "merge_rows", erase_first)
    upload(staff, f"email,reason\n{hashed},unsubscribed\n")
    assert suppression_reasons() == {hashed: "unsubscribed"}


def test_search_terms_are_matched_literally(app: Flask) -> None:
    add_suppression("a_b@example.com")
    assert suppression_queries.list_suppressions("a%") == []
    assert suppression_queries.list_suppressions("a\0_") != []


def test_a_test_email_is_not_sent_to_a_suppressed_address(staff: FlaskClient, make_offer: Callable[..., Any]) -> None:
    add_suppression("manager@example.com", "complained")
    form = {"subject": "s", "text": "{{ link }}", "uncertain_policy": "resend", "test": "1"}
    response = staff.post(f"/offers/{make_offer().id}/mail", data=form)
    assert (response.status_code, "is on the suppression list (complained)" in response.text) == (409, True)


def test_a_long_rejected_row_is_shown_truncated(staff: FlaskClient) -> None:
    row = upload(staff, f"email,reason\nnot an {'x' * 200},bounced\n")
    assert f"not an {'x' * 100}" in staff.get(f"/customers/imports/{row.id}").text
