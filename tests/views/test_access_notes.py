"""What requests count: failed sign-ins, refusals, and views of personal data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from flask import Flask, abort
from flask.testing import FlaskClient
from sqlalchemy import func, select, text, update

from tests.support.accounts import PASSWORD
from tests.support.factors import add_app, code_now
from tests.support.sessions import start_session
from tests.support.sql_statements import recorded_statements
from webapp import create_app
from webapp.accounts import access_counts, api_key_actions
from webapp.accounts.access_counts import Access
from webapp.accounts.models import AccessCount, ApiKey, StaffSession, StaffUser
from webapp.core import database_connections, database_health, database_timeouts, task_queue
from webapp.core.extensions import db
from webapp.core.settings import Settings
from webapp.customers.models import Customer
from webapp.customers.suppressions import actions as suppression_actions
from webapp.offers.models import Offer
from webapp.redemptions import group_commit
from webapp.redemptions import queries as redemption_queries
from webapp.redemptions.rules import RedemptionRequest

ADDRESS = {"REMOTE_ADDR": "203.0.113.7"}
# More than any limit allows.
ATTEMPTS = 200
IPV6 = {"REMOTE_ADDR": "2001:db8:1:2:3::4"}


def counted(*columns: str) -> list[tuple[Any, ...]]:
    """Return the counts, whatever their period."""
    db.session.rollback()
    rows = db.session.execute(select(AccessCount).order_by(AccessCount.id)).scalars()
    found: dict[tuple[Any, ...], int] = {}
    for row in rows:
        key = tuple(getattr(row, name) for name in columns or ("kind", "account", "address"))
        found[key] = found.get(key, 0) + row.n
    return [(*key, n) for key, n in found.items()]


def sign_in_as(client: FlaskClient, email: str, password: str = "wrong") -> int:
    data = {"email": email, "password": password}
    return client.post("/sign-in", data=data, environ_base=ADDRESS, buffered=True).status_code


def test_failed_sign_ins_are_counted(client: FlaskClient, make_user_with_password: Callable[..., StaffUser]) -> None:
    make_user_with_password(email="ann@example.com")

    for email in ("ann@example.com", " Ann@Example.com ", "eve@example.com", "not an address", "x\0@example.com"):
        assert sign_in_as(client, email) == 422

    assert counted() == [
        ("sign_in.failed", "ann@example.com", "203.0.113.7", 2),
        ("sign_in.failed", "", "203.0.113.7", 3),
    ]


def test_a_successful_sign_in_is_not_counted(
    client: FlaskClient, make_user_with_password: Callable[..., StaffUser]
) -> None:
    make_user_with_password(email="ann@example.com")

    assert sign_in_as(client, "ann@example.com", PASSWORD) == 302

    assert counted() == []


def test_refused_sign_ins_are_counted_with_the_account(
    client: FlaskClient, make_user_with_password: Callable[..., StaffUser]
) -> None:
    make_user_with_password(email="ann@example.com")
    for email in ("ann@example.com", "eve@example.com"):
        assert any(sign_in_as(client, email) == 429 for _ in range(ATTEMPTS))

    assert ("sign_in.locked", "ann@example.com", "203.0.113.7", 1) in counted()
    assert ("sign_in.locked", "", "203.0.113.7", 1) in counted()


def test_wrong_codes_and_their_lock_out_are_counted_for_the_account(
    client: FlaskClient, make_user_with_password: Callable[..., StaffUser]
) -> None:
    add_app(make_user_with_password(email="ann@example.com"))
    sign_in_as(client, "ann@example.com", PASSWORD)

    for _ in range(6):
        client.post("/sign-in/second-factor", data={"code": "000000x"}, environ_base=ADDRESS, buffered=True)

    assert counted() == [
        ("sign_in.failed", "ann@example.com", "203.0.113.7", 5),
        ("sign_in.locked", "ann@example.com", "203.0.113.7", 1),
    ]


def test_wrong_codes_that_confirm_an_action_are_counted_too(sign_in: Callable[..., FlaskClient]) -> None:
    client = sign_in("manager")
    add_app(db.session.scalars(select(StaffUser)).one())

    for _ in range(6):
        path = "/settings/profile/two-step/app/remove"
        client.post(path, data={"recent_code": "000000x"}, environ_base=ADDRESS, buffered=True)

    assert counted("kind", "account", "subject") == [
        ("sign_in.failed", "manager@example.com", "authenticator app", 5),
        ("sign_in.locked", "manager@example.com", "", 1),
    ]


def test_a_wrong_password_in_a_session_is_counted_but_not_the_question(sign_in: Callable[..., FlaskClient]) -> None:
    client = sign_in("admin")
    db.session.execute(update(StaffSession).values(authenticated_at=func.now() - timedelta(hours=1)))
    db.session.commit()
    key = {"name": "Till", "scopes": "read"}

    assert client.post("/settings/api-keys", data=key, environ_base=ADDRESS, buffered=True).status_code == 403
    assert counted() == []

    changed = {"current": "wrong", "password": "a brand new one", "confirm": "a brand new one"}
    client.post("/settings/profile/password", data=changed, environ_base=ADDRESS, buffered=True)
    client.post("/settings/api-keys", data={**key, "recent_password": "wrong"}, environ_base=ADDRESS, buffered=True)
    expected = ("sign_in.failed", "admin@example.com", "203.0.113.7", "password", 2)
    assert counted("kind", "account", "address", "subject") == [expected]


def test_the_count_is_written_after_the_response(
    client: FlaskClient, make_user_with_password: Callable[..., StaffUser]
) -> None:
    make_user_with_password(email="ann@example.com")

    with recorded_statements() as recorded:
        response = client.post("/sign-in", data={"email": "ann@example.com", "password": "wrong"})
        before = len([statement for statement, _values in recorded if "access_count" in statement])
        response.close()
        after = len([statement for statement, _values in recorded if "access_count" in statement])

    assert (before, after) == (0, 1)


def test_a_missing_table_does_not_break_the_request(client: FlaskClient) -> None:
    with db.engine.begin() as connection:
        connection.execute(text("alter table access_count rename to hidden"))
    try:
        assert sign_in_as(client, "eve@example.com") == 422
    finally:
        with db.engine.begin() as connection:
            connection.execute(text("alter table hidden rename to access_count"))


def test_failures_name_what_was_wrong(client: FlaskClient, make_user_with_password: Callable[..., StaffUser]) -> None:
    user = make_user_with_password("manager")
    secret, _codes = add_app(user)
    data = {"email": user.email, "password": "wrong"}
    client.post("/sign-in", data=data, buffered=True)
    client.post("/sign-in", data=data | {"code": "000000"}, buffered=True)
    client.post("/sign-in", data=data | {"password": PASSWORD}, buffered=True)
    client.post("/sign-in/second-factor", data={"code": "000000x"}, buffered=True)
    client.post("/sign-in/second-factor?recovery=", data={"code": "000000x"}, buffered=True)
    client.post("/sign-in/passkey?second=", data={"credential": "{}"}, buffered=True)
    client.post("/sign-in/second-factor", data={"code": code_now(secret)}, buffered=True)
    change = {"current": "wrong", "password": "a brand new one", "confirm": "a brand new one"}
    client.post("/settings/profile/password", data=change, buffered=True)

    assert counted("kind", "subject", "account") == [
        ("sign_in.failed", "password", user.email, 2),
        ("sign_in.failed", "code", user.email, 1),
        ("sign_in.failed", "authenticator app", user.email, 1),
        ("sign_in.failed", "recovery code", user.email, 1),
        ("sign_in.failed", "passkey", user.email, 1),
    ]


def test_links_that_do_not_work_are_counted(client: FlaskClient) -> None:
    assert client.get("/invitations/unknown", environ_base=ADDRESS, buffered=True).status_code == 404

    assert counted("kind", "address", "subject") == [("link.refused", "203.0.113.7", "", 1)]


@pytest.mark.parametrize(
    ("path", "request_values"),
    [
        ("/redeem", {"data": "a=1&" * 1001, "content_type": "application/x-www-form-urlencoded"}),
        ("/api/v1/redemptions", {"data": "{", "content_type": "application/json"}),
        ("/api/v1/redemptions", {"data": "x", "content_type": "text/plain"}),
    ],
    ids=["fields", "json", "media type"],
)
def test_malformed_requests_are_counted(api: FlaskClient, path: str, request_values: dict[str, str]) -> None:
    response = api.post(path, **request_values, environ_base=ADDRESS, buffered=True)

    assert response.status_code in (400, 413, 415)
    assert counted("kind", "address") == [("request.refused", "203.0.113.7", 1)]


def test_a_form_of_an_ended_session_is_no_refusal(
    csrf_client: FlaskClient, make_staff_user: Callable[..., StaffUser]
) -> None:
    start_session(csrf_client, make_staff_user("manager"))
    token = csrf_client.get("/offers/new").text.split('name="csrf_token" value="', 1)[1].split('"', 1)[0]
    db.session.execute(text("delete from staff_session"))
    db.session.commit()
    assert csrf_client.post("/offers/new", data={"csrf_token": token}, buffered=True).status_code == 400

    assert counted() == []


@pytest.mark.parametrize(
    ("authorization", "expected"),
    [
        ("Bearer {key}x", [("api_key.refused", "API key Till", "203.0.113.7", 1)]),
        ("Bearer onecode_live_unknown_secret", [("api_key.refused", "", "203.0.113.7", 1)]),
        ("Basic abc", [("api_key.refused", "", "203.0.113.7", 1)]),
        ("", []),
    ],
)
def test_refused_keys_are_counted(app: Flask, authorization: str, expected: list[object]) -> None:
    key = api_key_actions.create_api_key("Till", ["read"], by="tests")
    headers = {"Authorization": authorization.format(key=key)} if authorization else {}

    response = app.test_client().get("/api/v1/offers", headers=headers, environ_base=ADDRESS, buffered=True)

    assert response.status_code == 401
    assert counted() == expected


@pytest.mark.parametrize(
    ("path", "kind"), [("/customers", "customers.listed"), ("/settings/audit", "role.refused"), ("/", "")]
)
def test_the_key_of_another_client_does_not_replace_the_account(
    sign_in: Callable[..., FlaskClient], path: str, kind: str
) -> None:
    key = api_key_actions.create_api_key("Till", ["read"], by="tests")
    headers = {"Authorization": f"Bearer {key}"}

    sign_in("manager").get(path, headers=headers, environ_base=ADDRESS, buffered=True)

    assert counted() == ([(kind, "manager@example.com", "203.0.113.7", 1)] if kind else [])


def test_a_form_of_a_stranger_is_not_counted_for_a_key(client: FlaskClient) -> None:
    key = api_key_actions.create_api_key("Till", ["read"], by="tests")
    headers = {"Authorization": f"Bearer {key}", "Origin": "https://elsewhere.example"}

    client.post("/redeem", headers=headers, environ_base=ADDRESS, buffered=True)

    assert counted() == [("csrf.refused", "", "203.0.113.7", 1)]


def test_wrong_current_passwords_are_counted(sign_in: Callable[..., FlaskClient]) -> None:
    client = sign_in("viewer")
    form = {"current": "wrong", "password": "violet harbour 41 stones", "confirm": "violet harbour 41 stones"}
    client.post("/settings/profile/password", data=form, environ_base=ADDRESS, buffered=True)
    client.post("/settings/profile/password", data=form | {"confirm": "x"}, environ_base=ADDRESS, buffered=True)

    assert counted() == [("sign_in.failed", "viewer@example.com", "203.0.113.7", 1)]


def test_a_missing_scope_is_counted_for_the_key(app: Flask) -> None:
    key = api_key_actions.create_api_key("Till", ["redeem"], by="tests")

    app.test_client().get(
        "/api/v1/offers", headers={"Authorization": f"Bearer {key}"}, environ_base=IPV6, buffered=True
    )

    expected = ("scope.refused", "API key Till", "2001:db8:1:2::/64", "/api/v1/offers", 1)
    assert counted("kind", "account", "address", "subject") == [expected]


def test_a_missing_role_is_counted_for_the_user(sign_in: Callable[..., FlaskClient]) -> None:
    sign_in("viewer").get("/settings/people/7", environ_base=ADDRESS, buffered=True)

    expected = ("role.refused", "viewer@example.com", "203.0.113.7", "/settings/people/<int:user_id>", 1)
    assert counted("kind", "account", "address", "subject") == [expected]


def test_forms_without_a_token_are_counted(csrf_client: FlaskClient) -> None:
    assert csrf_client.post("/offers/new", environ_base=ADDRESS, buffered=True).status_code == 400

    assert counted() == [("csrf.refused", "", "203.0.113.7", 1)]


def test_forms_of_other_sites_are_counted(client: FlaskClient) -> None:
    headers = {"Origin": "https://elsewhere.example"}
    client.post("/redeem", headers=headers, environ_base=ADDRESS, buffered=True)

    assert counted() == [("csrf.refused", "", "203.0.113.7", 1)]


@pytest.fixture
def unreachable(app: Flask, test_settings: Settings) -> Iterator[Flask]:
    """An app whose database cannot be reached."""
    yield create_app(replace(test_settings, database_url="postgresql://nobody@127.0.0.1:1/nothing"))
    task_queue.init_app(app)
    database_health.mark_recovered()


@pytest.mark.parametrize(
    ("is_unavailable", "is_refusing_commits", "has_timed_out", "is_counted"),
    [
        (False, False, False, True),
        (True, False, False, False),
        # Counting does not wait for a missing standby.
        (True, True, False, True),
        (False, False, True, False),
    ],
)
def test_nothing_is_counted_while_the_database_cannot_be_reached(
    unreachable: Flask,
    monkeypatch: pytest.MonkeyPatch,
    is_unavailable: bool,
    is_refusing_commits: bool,
    has_timed_out: bool,
    is_counted: bool,
) -> None:
    guard = database_connections._CommitGuard()
    guard.is_refusing = is_refusing_commits
    monkeypatch.setattr(database_connections, "_commit_guard", guard)
    attempts: list[Iterable[Access]] = []
    monkeypatch.setattr(access_counts, "count_accesses", attempts.append)

    def refuse(**_values: object) -> None:
        database_health.mark_recovered()
        if is_unavailable:
            database_health.report_if_outage(psycopg.OperationalError("connection failed: Connection refused"))
        if has_timed_out:
            database_timeouts.note_connect_timeout(unreachable.config["SETTINGS"].libpq_url)
        abort(400)

    endpoint = unreachable.url_map.bind("").match("/redeem", "GET")[0]
    monkeypatch.setitem(unreachable.view_functions, endpoint, refuse)

    assert unreachable.test_client().get("/redeem", buffered=True).status_code == 400
    assert bool(attempts) is is_counted


def test_too_many_requests_are_counted(client: FlaskClient) -> None:
    assert any(
        client.post("/redeem", data={}, environ_base=ADDRESS, buffered=True).status_code == 429 for _ in range(ATTEMPTS)
    )
    assert counted() == [("rate_limit.exceeded", "", "203.0.113.7", 1)]


@pytest.fixture
def redemption_id(make_customer: Callable[..., Customer], make_offer: Callable[..., Offer]) -> str:
    """The reference of a redemption by customer 1 with source id C1."""
    make_customer("ada@example.com", source_id="C1")
    make_offer("SUMMER25")
    group_commit.redeem(RedemptionRequest(channel="form", code="SUMMER25", email="ada@example.com"))
    return redemption_queries.list_customer_redemptions(1)[0].public_id


STAFF_VIEWS = [
    ("/customers", "customers.listed", ""),
    ("/customers/1", "customer.viewed", "customer 1"),
    ("/customers/1/edit", "customer.viewed", "customer 1"),
    ("/why-not?who=ada@example.com&code=SUMMER25", "customer.viewed", "customer 1"),
    ("/customers/do-not-mail", "suppressions.listed", ""),
    ("/redemptions", "redemptions.listed", ""),
    ("/redemptions/{id}", "redemption.viewed", "customer 1"),
    ("/offers/1", "redemptions.listed", "SUMMER25"),
    ("/offers/1/live", "redemptions.listed", "SUMMER25"),
    ("/offers/1/mail/frame", "customer.viewed", "customer 1"),
    ("/offers/1/mail/frame?seen_as=ada@example.com", "customer.viewed", "customer 1"),
    ("/offers/1/mail?seen_as=ada@example.com", "customer.viewed", "customer 1"),
]


@pytest.mark.parametrize("page", ["erase", "personal-data"])
def test_pages_of_a_customer_for_administrators_are_counted(
    redemption_id: str, sign_in: Callable[..., FlaskClient], page: str
) -> None:
    sign_in("admin").get(f"/customers/1/{page}", buffered=True)

    assert counted("kind", "account", "subject") == [("customer.viewed", "admin@example.com", "customer 1", 1)]


def test_the_page_for_removing_a_suppression_is_counted(redemption_id: str, staff: FlaskClient) -> None:
    suppression_actions.add_suppression_by_staff("ada@example.com", "unsubscribed", by="tests")
    staff.get("/customers/do-not-mail/lift?email=ada@example.com", buffered=True)

    assert counted("kind", "subject") == [("suppressions.listed", "customer 1", 1)]


@pytest.fixture
def finished_campaign(redemption_id: str) -> None:
    """Campaign 1, which had no recipients."""
    db.session.execute(
        text(
            "insert into campaign (offer_id, kind, subject, text, html, status, launched_at, finished_at)"
            " values (1, 'announcement', 'x', 'x', '', 'done', now(), now())"
        )
    )
    db.session.commit()


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("", [("customer.viewed", "customer 1", 1)]),
        ("/frame", [("customer.viewed", "customer 1", 1)]),
        ("/mail/frame", [("customer.viewed", "customer 1", 1)]),
        ("/who?email=ada@example.com", [("customer.viewed", "customer 1", 1)]),
        ("/who?email=eve@example.com", []),
        ("/recipients", [("recipients.listed", "campaign 1", 1)]),
        ("/recipients?state=failed", [("recipients.listed", "campaign 1", 1)]),
    ],
)
def test_recipients_and_previews_of_a_campaign_are_counted(
    finished_campaign: None, staff: FlaskClient, path: str, expected: list[object]
) -> None:
    staff.get(f"/campaigns/1{path}", buffered=True)

    assert counted("kind", "subject") == expected


def test_a_preview_as_a_sample_customer_is_not_counted(staff: FlaskClient, make_offer: Callable[..., Offer]) -> None:
    make_offer()
    assert "Ada Lovelace" in staff.get("/offers/1/mail/frame", buffered=True).text
    assert counted() == []


def test_replies_on_the_page_of_a_campaign_are_counted(finished_campaign: None, staff: FlaskClient) -> None:
    staff.get("/campaigns/1/progress", buffered=True)
    assert counted() == []
    db.session.execute(
        text(
            "insert into mail_issue (campaign_id, customer_id, state, smtp_code, text)"
            " values (1, 1, 'failed', 550, '5.1.1 <ada@example.com> unknown')"
        )
    )
    db.session.commit()

    staff.get("/campaigns/1/progress", buffered=True)

    assert counted("kind", "subject") == [("recipients.listed", "campaign 1", 1)]
    staff.get("/campaigns/1/recipients", buffered=True)
    staff.get("/campaigns/1/who?email=eve@example.com", buffered=True)
    assert counted("kind", "subject") == [("recipients.listed", "campaign 1", 2)]
    staff.get("/campaigns/1/who?email=ada@example.com", buffered=True)
    assert ("customer.viewed", "customer 1", 1) in counted("kind", "subject")


def test_an_update_by_a_key_that_returns_a_customer_is_counted(redemption_id: str, api: FlaskClient) -> None:
    for source_id, email in (("C1", "ada@example.com"), ("C2", "bob@example.com")):
        api.put(f"/api/v1/customers/{source_id}", json={"email": email}, buffered=True)

    assert counted("kind", "account") == [("customer.viewed", "API key tests", 1)]


def test_pages_of_rejected_rows_are_counted(api: FlaskClient, sign_in: Callable[..., FlaskClient]) -> None:
    db.session.execute(
        text(
            "insert into customer_import (filename, media_type, status, started_at, finished_at, merged_to)"
            " values ('a.csv', 'text/csv', 'done', now(), now(), '{2}')"
        )
    )
    db.session.commit()
    sign_in("manager").get("/customers/imports/1", buffered=True)
    assert counted() == []
    db.session.execute(
        text("insert into import_rejection (import_id, line, code, detail, row) values (1, 2, 'x', '', 'y')")
    )
    db.session.commit()

    sign_in("viewer").get("/customers/imports/1", buffered=True)
    api.get("/api/v1/imports/1", buffered=True)

    assert counted("kind", "account", "subject") == [
        ("rejected_rows.listed", "viewer@example.com", "import 1", 1),
        ("rejected_rows.listed", "API key tests", "", 1),
    ]


@pytest.mark.parametrize(("path", "kind", "subject"), STAFF_VIEWS)
def test_views_of_staff_are_counted(redemption_id: str, staff: FlaskClient, path: str, kind: str, subject: str) -> None:
    for _time in range(2):
        response = staff.get(path.format(id=redemption_id), environ_base=ADDRESS, buffered=True)
        assert response.status_code == 200

    assert counted("kind", "account", "address", "subject") == [
        (kind, "manager@example.com", "203.0.113.7", subject, 2)
    ]


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/redemptions/{id}/undo", "redemption.viewed"), ("/customers/1/edit", "customer.viewed")],
)
def test_a_form_that_is_shown_again_counts_as_a_view(
    redemption_id: str, staff: FlaskClient, path: str, kind: str
) -> None:
    response = staff.post(path.format(id=redemption_id), data={}, buffered=True)

    assert response.status_code == 422
    assert "ada@example.com" in response.text
    assert counted("kind", "subject") == [(kind, "customer 1", 1)]


@pytest.mark.parametrize(
    "path",
    ["/offers", "/customers/99", "/customers/import", "/redemptions/unknown", "/why-not?who=eve@example.com&code=X"],
)
def test_pages_without_personal_data_are_not_counted(redemption_id: str, staff: FlaskClient, path: str) -> None:
    staff.get(path, buffered=True)

    assert counted() == []


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/customers/C1", "customer.viewed"),
        ("/customers/ada@example.com/offers", "customer.viewed"),
        ("/redemptions", "redemptions.listed"),
        ("/redemptions/{id}", "redemption.viewed"),
        ("/campaigns/1/recipients/ada@example.com", "customer.viewed"),
    ],
)
def test_views_of_keys_are_counted_without_the_customer(
    finished_campaign: None, redemption_id: str, api: FlaskClient, path: str, kind: str
) -> None:
    api.get(f"/api/v1{path.format(id=redemption_id)}", environ_base=ADDRESS, buffered=True)

    assert counted("kind", "account", "subject") == [(kind, "API key tests", "", 1)]


def test_the_session_is_counted(staff: FlaskClient) -> None:
    staff.get("/customers", buffered=True)

    session_id = db.session.scalars(select(StaffSession.id)).one()
    assert counted("kind", "staff_session_id") == [("customers.listed", session_id, 1)]


def test_an_entry_of_the_api_names_the_key(api: FlaskClient, make_offer: Callable[..., Offer]) -> None:
    make_offer("SUMMER25")
    api.post("/api/v1/offers/SUMMER25/codes", json={"code": "WINTER26"}, environ_base=ADDRESS)
    key_id = db.session.scalars(select(ApiKey.id)).one()

    entry = db.session.execute(
        text("select address, api_key_id from audit_entry where action = 'offer.code_renewed'")
    ).one()

    assert tuple(entry) == ("203.0.113.7", key_id)
