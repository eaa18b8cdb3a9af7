"""What is saved is answered as saved, although no other connection to the database can be opened after the commit."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from flask import Flask, g
from flask.testing import FlaskClient
from sqlalchemy import event, text
from sqlalchemy.exc import OperationalError

from tests.support.campaigns import LaunchCampaign, create_customers
from tests.support.factories import MakeCustomer, MakeOffer
from tests.support.frozen_server import frozen_process
from tests.support.redemptions import ROLLBACK
from webapp.campaigns import tokens
from webapp.core import database_connections, database_health, signing_keys
from webapp.core.database_connections import DeadlineConnection
from webapp.core.extensions import db
from webapp.redemptions import group_commit, personal_links

ADA = {"code": "SUMMER25", "customer": {"email": "ada@example.com"}}
# Statements whose commit makes a change of the tests final.
WRITES = ("insert into redemption", "with deleted as", "update campaign", "insert into offer")
OFFER = {"name": "Summer sale", "code": "SUMMER25", "discount": {"type": "percent", "percent": "25"}}


@pytest.fixture
def refused_connections(app: Flask) -> Iterator[list[str]]:
    """The connections that were refused because they were wanted after the commit of a change.

    As in a process that has just been started, no key is cached and no connection is open.
    """
    refused: list[str] = []
    state = {"has_written": False, "is_committed": False}

    def note_write(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        state["has_written"] = state["has_written"] or statement.strip().lower().startswith(WRITES)

    def note_commit(_connection: Any) -> None:
        state["is_committed"] = state["is_committed"] or state["has_written"]

    def refuse(*_: Any) -> None:
        if state["is_committed"]:
            refused.append("checkout")
            reason = psycopg.OperationalError("connection failed: FATAL:  sorry, too many clients already")
            raise OperationalError("connect", {}, reason)

    listeners: list[tuple[Any, str, Callable[..., None]]] = [
        (db.engine, "after_cursor_execute", note_write),
        (db.engine, "commit", note_commit),
        (db.engine, "checkout", refuse),
    ]
    db.session.rollback()
    group_commit.get_group_committer().close()
    signing_keys.clear_key_cache()
    for target, name, listener in listeners:
        event.listen(target, name, listener)
    yield refused
    for target, name, listener in listeners:
        event.remove(target, name, listener)
    group_commit.get_group_committer().close()


@pytest.fixture
def personal_path(make_offer: MakeOffer, make_customer: MakeCustomer) -> str:
    """The path of the personal link of a German customer for a live offer."""
    offer, customer = make_offer(), make_customer(locale="de-DE")
    return f"/r/{personal_links.build_personal_url(offer.id, customer.id).rpartition('/')[2]}"


@pytest.mark.usefixtures("personal_path")
def test_the_api_returns_a_saved_redemption(api: FlaskClient, refused_connections: list[str]) -> None:
    response = api.post("/api/v1/redemptions", json=ADA)

    assert (response.status_code, refused_connections) == (201, [])


@pytest.mark.usefixtures("personal_path")
def test_the_form_shows_the_receipt_of_a_saved_redemption(client: FlaskClient, refused_connections: list[str]) -> None:
    response = client.post("/redeem", data={"code": "SUMMER25", "email": "ada@example.com"})

    assert (response.status_code, refused_connections) == (200, [])
    assert "25\xa0%" in response.text


def test_the_personal_link_shows_the_receipt_of_a_saved_redemption(
    client: FlaskClient, personal_path: str, refused_connections: list[str]
) -> None:
    response = client.post(personal_path)

    assert (response.status_code, refused_connections) == (200, [])
    assert "25\xa0%" in response.text


def test_a_customer_page_does_not_load_the_user_of_the_browser(
    staff: FlaskClient, personal_path: str, refused_connections: list[str]
) -> None:
    assert (staff.post(personal_path).status_code, refused_connections) == (200, [])


@pytest.mark.usefixtures("personal_path")
def test_the_staff_page_confirms_a_saved_redemption(staff: FlaskClient, refused_connections: list[str]) -> None:
    response = staff.post("/redemptions/new", data={"code": "SUMMER25", "email": "ada@example.com"})

    assert (response.status_code, refused_connections) == (302, [])
    assert response.location.startswith("/redemptions/")


@pytest.fixture
def public_id(api: FlaskClient, personal_path: str) -> str:
    """The public id of a redemption."""
    return str(api.post("/api/v1/redemptions", json=ADA).json["id"])  # type: ignore[index]


def test_the_api_returns_a_saved_rollback(api: FlaskClient, public_id: str, refused_connections: list[str]) -> None:
    response = api.post(f"/api/v1/redemptions/{public_id}/rollback", json={"reason": ROLLBACK["reason"]})

    assert (response.status_code, refused_connections) == (200, [])
    assert response.json is not None
    assert (response.json["rollback_reason"], response.json["rolled_back_at"][-1]) == (ROLLBACK["reason"], "Z")


def test_the_staff_page_confirms_a_saved_undo(
    staff: FlaskClient, public_id: str, refused_connections: list[str]
) -> None:
    response = staff.post(f"/redemptions/{public_id}/undo", data={"reason": "order cancelled"})

    assert (response.status_code, refused_connections) == (302, [])


def test_a_rollback_is_returned_as_it_is_read_later(api: FlaskClient, public_id: str) -> None:
    returned = api.post(f"/api/v1/redemptions/{public_id}/rollback", json={"reason": " order \n cancelled"}).json

    assert returned == api.get(f"/api/v1/redemptions/{public_id}").json


@pytest.fixture
def campaign_id(launch_campaign: LaunchCampaign) -> int:
    """The id of a campaign that is being sent."""
    create_customers(2)
    return launch_campaign().id


def test_a_change_that_is_saved_is_not_offered_again(
    staff: FlaskClient, campaign_id: int, refused_connections: list[str]
) -> None:
    response = staff.post(f"/campaigns/{campaign_id}/pause", data={"page": "1"})

    assert (response.status_code, len(refused_connections) > 0) == (503, True)
    assert "Part or all of this was saved" in response.text
    assert "Try again" not in response.text


def test_a_change_that_is_not_saved_is_offered_again(staff: FlaskClient, campaign_id: int) -> None:
    refuse_update = _refuse_statement("update campaign")
    event.listen(db.engine, "before_cursor_execute", refuse_update)
    try:
        response = staff.post(f"/campaigns/{campaign_id}/pause", data={"page": "1"})
    finally:
        event.remove(db.engine, "before_cursor_execute", refuse_update)

    assert response.status_code == 503
    assert "Part or all" not in response.text
    assert "Try again" in response.text


def _refuse_statement(start: str) -> Callable[..., None]:
    """Return a listener that lets statements fail which start with a text."""

    def refuse(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.strip().lower().startswith(start):
            raise OperationalError("update", {}, psycopg.OperationalError("the connection was closed"))

    return refuse


@pytest.fixture
def full_disk(campaign_id: int) -> Iterator[None]:
    """Lets the disk be full as soon as a change of the campaign is committed."""
    state = {"has_written": False, "is_committed": False}

    def note_write(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        state["has_written"] = state["has_written"] or statement.strip().lower().startswith(WRITES)

    def note_commit(_connection: Any) -> None:
        state["is_committed"] = state["is_committed"] or state["has_written"]

    def refuse(*_: Any) -> None:
        if state["is_committed"]:
            raise OperationalError("select", {}, psycopg.errors.DiskFull("could not write to file"))

    listeners: list[tuple[str, Callable[..., None]]] = [
        ("after_cursor_execute", note_write),
        ("commit", note_commit),
        ("before_cursor_execute", refuse),
    ]
    for name, listener in listeners:
        event.listen(db.engine, name, listener)
    yield
    for name, listener in listeners:
        event.remove(db.engine, name, listener)


@pytest.mark.usefixtures("full_disk")
def test_a_change_that_is_saved_is_not_denied_on_a_full_disk(staff: FlaskClient, campaign_id: int) -> None:
    response = staff.post(f"/campaigns/{campaign_id}/pause", data={"page": "1"})

    assert response.status_code == 503
    assert "Part or all of this was saved" in response.text
    assert "Try again" not in response.text


@pytest.fixture
def unconfirmed_commit(app: Flask, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Lets the server freeze during the commit of the transaction with a statement that starts with a text."""
    starts: list[str] = []
    is_written = threading.Event()
    commit = DeadlineConnection.commit

    def note_write(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if starts and statement.strip().lower().startswith(starts[0]):
            is_written.set()

    def freeze_and_commit(connection: DeadlineConnection) -> None:
        if not is_written.is_set():
            commit(connection)
            return
        is_written.clear()
        connection.statement_seconds = 0.5
        with frozen_process(connection.info.backend_pid):
            commit(connection)

    monkeypatch.setattr(database_connections, "_commit_guard", database_connections._CommitGuard())
    monkeypatch.setattr(DeadlineConnection, "commit", freeze_and_commit)
    event.listen(db.engine, "after_cursor_execute", note_write)
    yield starts.append
    event.remove(db.engine, "after_cursor_execute", note_write)
    database_health.mark_recovered()


def test_staff_read_that_a_change_was_not_confirmed(
    staff: FlaskClient, campaign_id: int, unconfirmed_commit: Callable[[str], None]
) -> None:
    unconfirmed_commit("update campaign")

    response = staff.post(f"/campaigns/{campaign_id}/pause", data={"page": "1"})

    assert response.status_code == 503
    assert "We could not confirm whether this was saved. Check it before you retry." in response.text
    assert "Try again" not in response.text


def test_api_clients_read_that_a_change_was_not_confirmed(
    api: FlaskClient, unconfirmed_commit: Callable[[str], None]
) -> None:
    unconfirmed_commit("insert into offer")

    response = api.post("/api/v1/offers", json=OFFER)

    assert response.status_code == 503
    assert response.json is not None
    assert response.json["detail"] == "We could not confirm whether this was saved. Check it before you retry."


def test_customers_can_repeat_what_was_not_confirmed(
    client: FlaskClient, make_customer: MakeCustomer, campaign_id: int, unconfirmed_commit: Callable[[str], None]
) -> None:
    url = tokens.build_unsubscribe_url(make_customer().id, campaign_id)
    unconfirmed_commit("insert into suppression")

    response = client.post(f"/u/{url.rpartition('/u/')[2]}", data={"page": "1"})

    assert response.status_code == 503
    assert "We could not confirm whether this was saved. Please try again in a moment." in response.text
    assert "Try again" in response.text


def test_a_commit_of_a_hook_is_not_one_of_the_view(
    staff: FlaskClient, campaign_id: int, unconfirmed_commit: Callable[[str], None]
) -> None:
    """Nothing of the request was saved, so it is offered again."""
    db.session.execute(text("update staff_session set last_used_at = last_used_at - interval '1 hour'"))
    db.session.commit()
    g.pop("has_view_committed", None)
    unconfirmed_commit("update staff_session")

    response = staff.post(f"/campaigns/{campaign_id}/pause", data={"page": "1"})

    assert response.status_code == 503
    assert "could not confirm" not in response.text
    assert "Try again" in response.text
