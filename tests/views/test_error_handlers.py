"""Texts of errors for each reader: users, customers and API clients."""

from __future__ import annotations

import psycopg
import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy.exc import InternalError, NotSupportedError, OperationalError

from tests.support.server_errors import build_unlogged_table_error
from webapp.views.public import redemptions


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("GET", "/nothing", 404, "There is no page at this address."),
        ("GET", "/redeem/nothing", 404, "Check the address, or open the link in our email again."),
        ("GET", "/api/v1/nothing", 404, "No endpoint has this path."),
        ("DELETE", "/redeem", 405, "This page can&#39;t be opened directly."),
        ("DELETE", "/api/v1/offers", 405, "This endpoint does not accept this method; see the header `Allow`."),
    ],
)
def test_an_error_mentions_a_page_or_an_endpoint(
    client: FlaskClient, method: str, path: str, status: int, message: str
) -> None:
    response = client.open(path, method=method)

    assert (response.status_code, message in response.text) == (status, True)


def test_customers_do_not_read_about_the_database(
    app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: object, **_values: object) -> None:
        raise OperationalError("select", {}, Exception("the connection was closed"))

    monkeypatch.setattr(redemptions, "_render_page", fail)

    response = client.get("/redeem")

    assert response.status_code == 503
    assert "This page is temporarily unavailable. Please try again in a moment." in response.text
    assert "database" not in response.text


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/redeem", "Nothing can be saved for some time. Please try again later."),
        ("/sign-in", "The disk of the database is full, so this can&#39;t be saved."),
        ("/api/v1/offers", "The disk of the database is full, so this can't be saved."),
    ],
)
def test_a_full_disk_is_not_reported_as_an_outage(
    app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch, path: str, message: str
) -> None:
    error = OperationalError("insert", {}, psycopg.errors.DiskFull("could not extend file"))
    _fail_with(error, app, monkeypatch, path)

    response = client.get(path)

    assert (response.status_code, message in response.text) == (503, True)
    assert "unavailable. Please" not in response.text


@pytest.mark.parametrize(
    "error",
    [
        InternalError("update", {}, psycopg.errors.ReadOnlySqlTransaction("cannot execute UPDATE")),
        NotSupportedError("select", {}, build_unlogged_table_error()),
    ],
)
@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/redeem", "This page is temporarily unavailable. Please try again in a moment."),
        ("/sign-in", "The database accepts no changes at the moment. Please try again in a moment."),
        ("/api/v1/offers", "The database accepts no changes at the moment. Please try again in a moment."),
    ],
)
def test_a_read_only_database_is_not_an_unexpected_error(
    app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch, path: str, message: str, error: Exception
) -> None:
    _fail_with(error, app, monkeypatch, path)

    response = client.get(path)

    assert (response.status_code, message in response.text) == (503, True)


def test_other_internal_errors_are_unexpected(app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    _fail_with(
        InternalError("update", {}, psycopg.errors.IndexCorrupted("corrupted page")), app, monkeypatch, "/redeem"
    )

    assert client.get("/redeem").status_code == 500


def _fail_with(error: Exception, app: Flask, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """Let the view of a path raise an error."""

    def fail(**_values: object) -> None:
        raise error

    endpoint = app.url_map.bind("").match(path, "GET")[0]
    monkeypatch.setitem(app.view_functions, endpoint, fail)
    monkeypatch.setattr(fail, "is_login_exempt", True, raising=False)
    monkeypatch.setattr(fail, "is_api_key_exempt", True, raising=False)
