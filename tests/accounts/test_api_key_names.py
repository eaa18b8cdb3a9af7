"""API keys that are not revoked have different names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import flask_migrate
import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select, text

from webapp.accounts import api_key_actions
from webapp.accounts.models import ApiKey, AuditEntry, StaffUser
from webapp.core.errors import InvalidInput
from webapp.core.extensions import db


@pytest.mark.parametrize("name", ["Till", "till", " TILL "])
def test_a_second_key_of_the_same_name_is_refused(app: Flask, name: str) -> None:
    api_key_actions.create_api_key("Till", ["read"], by="ann")

    with pytest.raises(InvalidInput) as refused:
        api_key_actions.create_api_key(name, ["read"], by="ann")

    assert [(error.field, error.key) for error in refused.value.errors] == [("name", "name_taken")]
    assert db.session.scalars(select(AuditEntry.action)).all() == ["api_key.created"]


def test_the_name_of_a_revoked_key_can_be_used_again(app: Flask) -> None:
    api_key_actions.create_api_key("Till", ["read"], by="ann")
    api_key_actions.revoke_api_key(db.session.scalars(select(ApiKey.id)).one(), by="ann")

    api_key_actions.create_api_key("Till", ["read"], by="ann")

    assert db.session.scalars(select(ApiKey.name)).all() == ["Till", "Till"]


def test_the_pages_name_who_created_a_key(
    sign_in: Callable[..., FlaskClient], make_staff_user: Callable[..., StaffUser]
) -> None:
    eve = make_staff_user("admin", email="eve@example.com")
    for name, by in (("Till", eve.email), ("Kiosk", "ann"), ("Tablet", eve.email)):
        api_key_actions.create_api_key(name, ["read"], by=by)
    api_key_actions.revoke_api_key(db.session.scalars(select(ApiKey.id).where(ApiKey.name == "Tablet")).one(), by="ann")
    client = sign_in("admin")
    assert client.get("/settings/api-keys").text.count("eve@example.com") == 2
    page = client.get(f"/settings/people/{eve.id}").text
    assert re.findall("Till|Kiosk|Tablet|still work", page) == ["Till"]

    client.post(f"/settings/people/{eve.id}/disable")

    assert "API keys that Admin created still work." in client.get(f"/settings/people/{eve.id}").text


def test_the_form_says_what_to_do_and_keeps_the_input(sign_in: Callable[..., FlaskClient]) -> None:
    api_key_actions.create_api_key("Till", ["read"], by="ann")

    response = sign_in("admin").post("/settings/api-keys", data={"name": "till", "scopes": ["redeem"]})

    assert response.status_code == 422
    assert "Another key has this name. Choose a different name, or revoke the other key first." in response.text
    assert 'value="till"' in response.text


@pytest.fixture
def before_the_migration(app: Flask) -> Iterator[None]:
    """The schema without unique names; the newest one afterwards."""
    db.session.remove()
    flask_migrate.downgrade(revision="0014")
    yield
    db.session.remove()
    flask_migrate.upgrade()


def test_the_migration_adds_a_number_to_names_that_are_taken(before_the_migration: None) -> None:
    names = ["Till", "till", "Shop", "Till", "till (2)", "Old", "Old"]
    with db.engine.begin() as connection:
        for number, name in enumerate(names, 1):
            connection.execute(
                text(
                    "insert into api_key (id, public_id, name, secret_hash, key_version, scopes, revoked_at) values"
                    " (:number, cast(:number as text), :name, '', 1, '{read}', case when :number = 6 then now() end)"
                ),
                {"number": number, "name": name},
            )

    flask_migrate.upgrade()

    with db.engine.connect() as connection:
        found = connection.execute(text("select name from api_key order by id")).scalars().all()
    assert found == ["Till", "till (2)", "Shop", "Till (4)", "till (2) (5)", "Old", "Old"]
