"""Uploads during which the session of the user ends or the API key is revoked."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pytest
from flask.testing import FlaskClient
from sqlalchemy import text

from webapp.core.extensions import db
from webapp.customers.imports import queries as import_queries

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

FORM = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.csv"\r\n\r\n%s\r\n--x--\r\n'
# More than the megabyte that is read at once.
ROWS = b"email\r\n" + b"".join(b"reader%07d@example.com\r\n" % number for number in range(50_000))


class BodyWithEvent(io.BytesIO):
    """A body; while it is being received, a statement is executed."""

    def __init__(self, body: bytes, statement: str) -> None:
        super().__init__(body)
        self.statement = statement

    def readinto(self, buffer: WriteableBuffer) -> int:
        size = super().readinto(buffer)
        if self.statement:
            with db.engine.begin() as connection:
                connection.execute(text(self.statement))
            self.statement = ""
        return size


def list_statuses() -> list[str]:
    return [row.status for row in import_queries.list_imports()]


@pytest.mark.parametrize("rows", [ROWS, b"email\r\nada@example.com\r\n"])
@pytest.mark.parametrize("path", ["/customers/import", "/customers/do-not-mail/import"])
@pytest.mark.parametrize("event", ["delete from staff_session", "update staff_user set disabled_at = now()"])
def test_an_upload_of_a_user_whose_session_has_ended_is_refused(
    staff: FlaskClient, path: str, event: str, rows: bytes
) -> None:
    body = FORM % rows

    response = staff.post(
        path,
        input_stream=BodyWithEvent(body, event),
        content_length=len(body),
        content_type="multipart/form-data; boundary=x",
    )

    assert response.status_code == 400
    assert "your session has ended" in response.text
    assert set(list_statuses()) <= {"failed"}


@pytest.mark.parametrize("rows", [ROWS, b"email\r\nada@example.com\r\n"])
def test_an_upload_with_a_key_that_was_revoked_is_refused(
    api: FlaskClient, rows: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("webapp.accounts.api_key_actions.API_KEY_CACHE_SECONDS", 0)

    response = api.post(
        "/api/v1/customers/import",
        input_stream=BodyWithEvent(rows, "update api_key set revoked_at = now()"),
        content_length=len(rows),
        content_type="text/csv",
    )

    assert response.status_code == 401
    assert set(list_statuses()) <= {"failed"}


def test_other_uploads_are_accepted(staff: FlaskClient, api: FlaskClient) -> None:
    body = FORM % ROWS
    form = {"content_type": "multipart/form-data; boundary=x", "content_length": len(body)}
    assert staff.post("/customers/import", input_stream=io.BytesIO(body), **form).status_code == 302
    assert api.post("/api/v1/customers/import", data=ROWS, content_type="text/csv").status_code == 202
    assert list_statuses() == ["queued", "queued"]
