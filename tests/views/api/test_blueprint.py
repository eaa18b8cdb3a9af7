"""Authentication and scopes of the API."""

from __future__ import annotations

import pytest
from flask import Flask
from flask.testing import FlaskClient

from webapp.accounts import api_key_actions
from webapp.accounts.models import SCOPES
from webapp.core.errors import DomainError
from webapp.views.api.blueprint import authenticate
from webapp.views.problem_details import problem_response


def bearer(*scopes: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {api_key_actions.create_api_key('tests', list(scopes), by='tests')}"}


def test_a_request_without_a_key_gets_an_authentication_challenge(client: FlaskClient) -> None:
    response = client.get("/api/v1/offers")

    assert (response.status_code, response.get_json()["code"]) == (401, "unauthorized")
    assert response.headers["WWW-Authenticate"] == 'Bearer realm="onecode"'


@pytest.mark.parametrize("scope", SCOPES)
def test_a_key_has_only_the_scopes_that_it_was_given(app: Flask, scope: str) -> None:
    with app.test_request_context(headers=bearer(scope)):
        authenticate(scope)
        for other in set(SCOPES) - {scope}:
            with pytest.raises(DomainError) as raised:
                authenticate(other)
            assert (raised.value.key, raised.value.status) == ("forbidden", 403)


def test_a_view_without_a_scope_is_forbidden_for_every_key(app: Flask) -> None:
    with app.test_request_context(headers=bearer(*SCOPES)), pytest.raises(DomainError) as raised:
        authenticate(None)
    assert (raised.value.key, raised.value.status) == ("forbidden", 403)


def test_every_view_of_the_api_requires_a_known_scope_or_no_key(app: Flask) -> None:
    views = {name: view for name, view in app.view_functions.items() if name.startswith("api.")}

    exempt = {name for name, view in views.items() if getattr(view, "is_api_key_exempt", False)}
    assert exempt == {"api.docs.openapi", "api.docs.docs"}
    assert {getattr(views[name], "required_scope", None) for name in views.keys() - exempt} == set(SCOPES)


@pytest.mark.parametrize(("status", "seconds"), [(429, "5"), (503, "5"), (500, None), (409, None)])
def test_only_temporary_errors_have_a_retry_after_header(app: Flask, status: int, seconds: str | None) -> None:
    with app.test_request_context():
        assert problem_response(status, "error", "A message.").headers.get("Retry-After") == seconds
